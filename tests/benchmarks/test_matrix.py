"""The matrix of orders and token types: its rows, equal budgets, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arvid.benchmarks.matrix import _budgets, _figures, _longer, _results, _rows, _values
from arvid.contracts import UserError
from arvid.evaluation.records import Budget, MetricValue, ResultRecord, save
from arvid.experiments import equal
from arvid.training.generator_module import load_generator
from arvid.training.keys import LAST_CHECKPOINT

SCRIPT = "matrix/run"
ORDERS = ("nova", "next_block")
SMALL = ["--trainer.max_steps=100", "--data.train.init_args.num_clips=8"]


def rows(sizes: tuple[str, ...] = ("debug",), seeds: int = 2) -> list[_rows.MatrixRow]:
    return _rows.all_rows(ORDERS, _rows.TOKEN_TYPES, sizes, seeds, "sprites")


def options(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["matrix", *arguments])
    return script.parse_arguments()


def test_every_combination_is_one_row_and_the_first_seed_of_all_comes_first() -> None:
    found = rows()
    assert len({row.name for row in found}) == len(found) == 8
    assert [row.seed for row in found] == [0] * 4 + [1] * 4
    assert found[0].name == "nova-continuous-s0"
    assert rows(sizes=("d4w64", "tiny"))[0].name == "nova-continuous-d4w64-s0"
    variant = found[-1].variant(["--trainer.max_steps=7"])
    assert {"--seed_everything=1", "--data.seed=1", "--trainer.max_steps=7"} <= set(variant.options)


def test_every_order_and_size_is_a_configuration() -> None:
    configs = Path(_rows.__file__).resolve().parents[2] / "configs"
    for order in _rows.ORDERS.values():
        assert (configs / "paradigms" / f"{order.config}.yaml").is_file()
    for size in _rows.SIZES:
        assert (configs / "sizes" / f"{size}.yaml").is_file()


def test_shares_and_data_are_checked(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(script, monkeypatch, "--share", "3/8").share == (3, 8)
    for wrong in ("0/8", "9/8", "3", "a/b"):
        with pytest.raises(SystemExit):
            options(script, monkeypatch, "--share", wrong)
    with pytest.raises(Exception, match="needs your own clips"):
        options(script, monkeypatch, "--scale", "lab")
    with pytest.raises(Exception, match="tokenizers of their own"):
        options(script, monkeypatch, "--data", ".")


@pytest.mark.parametrize("question", ["flops", "parameters"])
def test_equal_budgets_are_equal_within_two_percent(
    question: _budgets.Equal, tmp_path: Path
) -> None:
    given = _rows.all_rows(("next_block", "nova"), ("discrete",), ("debug",), 1, "sprites")
    made = _budgets.with_equal(question, given, SMALL, tmp_path)
    costs = [equal.cost(row.configs, [*row.options, *SMALL, *row.extra]) for row in made]
    values = [cost.flops if question == "flops" else cost.parameters for cost in costs]
    assert max(values) / min(values) < 1.02
    assert made[1].extra
    again = _budgets.with_equal(question, given, SMALL, tmp_path)  # from the file
    assert [row.extra for row in again] == [row.extra for row in made]


def test_a_pareto_front_holds_no_row_that_another_beats_in_both() -> None:
    metric = _values.Metric(
        name="fd", label="FD", unit="", higher_is_better=False, protocol="sprites-generation"
    )
    points = {("a", "x"): (1.0, 9.0), ("b", "x"): (2.0, 9.5), ("c", "x"): (3.0, 4.0)}
    assert _figures.pareto_front(points, metric) == [("a", "x"), ("c", "x")]


def record(row: _rows.MatrixRow, protocol: str, values: dict[str, float]) -> ResultRecord:
    return ResultRecord(
        name=row.name,
        row="trained",
        factors={"paradigm": row.order, "token_type": row.token_type, "size": row.size},
        setting={
            "seed": row.seed,
            "data.seed": row.seed,
            "data.clips_per_step": 8,
            "data.clip_shape": [9, 32, 32],
        },
        setting_hash=f"hash of seed {row.seed}",
        protocol={"name": protocol, "hash": f"hash of {protocol}", "condition_frames": 0},
        metrics=tuple(
            MetricValue(
                name=name,
                value=value,
                protocol=protocol,
                spread=0.1,
                spread_kind="standard error",
                higher_is_better=name != "fd",
            )
            for name, value in values.items()
        ),
        budget=Budget(
            parameters=1000,
            flops_per_training_clip=1e6 * _rows.SIZES[row.size].head_dim
            if _rows.SIZES[row.size].head_dim
            else 1e6,
            training_steps=100,
            frames_per_second=20.0,
            evaluations={"network": 24},
        ),
        steps_curve={"fd": (1.0, 2.0, 3.0)} if protocol == "prediction" else {},
        identity=f"{row.name} {protocol}",
    )


@pytest.fixture
def written(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """results.json of made-up records: continuous tokens have a distance of 10 less, next-block 2 more."""
    given = options(
        script,
        monkeypatch,
        *("--orders", *ORDERS, "--sizes", "d4w64", "d5w96", "tiny", "--seeds", "2"),
        *("--out", str(tmp_path)),
    )
    generator = np.random.default_rng(0)
    found = []
    for row in script.matrix_rows(given):
        distance = 30 - 10 * (row.token_type == "continuous") + 2 * (row.order == "next_block")
        distance += 0.2 * generator.standard_normal() + 9 * (row.size == "d4w64")
        for protocol in ("generation", "prediction"):
            made = record(row, protocol, {"fd": distance, "accuracy": 100 - distance})
            save(made, tmp_path / row.name / "evaluation" / f"{protocol}.json")
            found.append(_read(tmp_path / row.name / "evaluation" / f"{protocol}.json"))
    shown = {("nova", "continuous"): np.arange(16.0).reshape(2, 8)}
    longer = _longer.Longer(curves={"Shape shown (%)": shown}, trained=3)
    _results.write(script.matrix_rows(given), found, longer, given, ["A note."])
    results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    return results


def test_bold_cells_are_those_that_the_sentences_do_not_call_worse(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cell with a wide spread of its own is judged by the deviation of all cells, in the table as in the text."""
    given = options(
        script,
        monkeypatch,
        *("--orders", *ORDERS, "--sizes", "tiny", "--seeds", "3", "--out", str(tmp_path)),
    )
    values = {
        ("nova", "continuous"): (9.0, 9.0, 13.0),
        ("nova", "discrete"): (12.6, 12.7, 12.8),
        ("next_block", "continuous"): (20.0, 20.1, 20.2),
        ("next_block", "discrete"): (30.0, 30.1, 30.2),
    }
    rows = script.matrix_rows(given)
    records = []
    for row in rows:
        fd = values[row.order, row.token_type][row.seed]
        for protocol in ("generation", "prediction"):
            path = tmp_path / row.name / "evaluation" / f"{protocol}.json"
            save(record(row, protocol, {"fd": fd, "accuracy": 50.0 + row.seed}), path)
            records.append(_read(path))
    _results.write(rows, records, _longer.Longer(curves={}, trained=3), given, [])
    page = (tmp_path / "table.md").read_text()
    assert "The best combination in fd is nova on continuous tokens, significantly better" in page
    assert "| nova | **10.3 ± 1.3** | 12.7 ± 0.1 |" in page
    assert "fd under generation" not in page


def _read(path: Path) -> ResultRecord:
    from arvid.evaluation.records import load

    return load(path)


def test_tables_sentences_and_figures_are_written(written: dict[str, Any], tmp_path: Path) -> None:
    page = (tmp_path / "table.md").read_text()
    assert (
        "Averaged over the orders, continuous tokens are better than discrete tokens in fd" in page
    )
    assert "| **19.9 ± 0.1** |" in page
    assert "| next_block | 2" in page
    assert "exponent" in page
    shares = written["metrics"][0]["shares"]
    assert shares["token type"]["value"] > 0.9
    assert "| step 1 | step 2 (1x) | step 5 (2x) | step 8 (3x) |" in page.replace(
        "|  | step", "| step"
    )
    assert "| nova continuous | 4.00 ± 4.00 | 5.00 ± 4.00 | 8.00 ± 4.00 | 11.00 ± 4.00 |" in page
    for name in ("matrix", "costs", "effects", "drift", "longer", "scaling-quality"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert "nova-continuous-tiny (2 seeds)" in (tmp_path / "index.html").read_text()


def test_orders_that_refuse_longer_clips_are_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained_run: Path
) -> None:
    given = options(script, monkeypatch, "--times", "2", "--num-clips", "2", "--out", str(tmp_path))
    scored: list[str] = []

    def score(variants: Any, protocols: Any, out: Path, **real: Any) -> list[ResultRecord]:
        scored.extend(variant.name for variant in variants)
        assert all(variant.sampling == {"overlap": 2} for variant in variants)
        assert protocols[0].clip.num_frames == 37  # of 2 x 5 latent frames
        assert len(real["real"]["sprites-longer"][0].video) == 37
        return []

    monkeypatch.setattr(_longer, "load_variant", lambda *_: load_generator(trained_run))
    monkeypatch.setattr(_longer, "score", score)
    size = given.sizes[-1]
    few = _rows.all_rows(("masked", "next_block"), ("discrete",), (size,), 1, "sprites")
    assert _longer.score_longer(few, given).trained == 5
    assert scored == ["next_block-discrete-s0"]
    given.times = 1
    assert not _longer.score_longer(few, given).curves


def test_videos_that_are_too_short_for_longer_clips_lose_no_other_results(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained_run: Path
) -> None:
    def scoring(*_: Any) -> Any:
        raise UserError("no video is left of 8: 8 too short for 51 frames")

    given = options(script, monkeypatch, "--out", str(tmp_path))
    monkeypatch.setattr(_longer, "load_variant", lambda *_: load_generator(trained_run))
    monkeypatch.setattr(_longer, "scoring", scoring)
    longer = _longer.score_longer(script.matrix_rows(given), given)
    assert not longer.curves
    expected = "No clips of 3 trained lengths: no video is left of 8: 8 too short for 51 frames"
    assert _longer.lines_of(longer) == [expected, ""]


@pytest.mark.slow
def test_a_killed_matrix_continues_and_ends_in_the_same_numbers(tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        arguments = ["--scale", "smoke", "--orders", *ORDERS, "--out", str(out)]
        return subprocess.Popen([sys.executable, "-m", "arvid", "bench", "matrix", *arguments])

    assert start(tmp_path / "whole").wait() == 0
    for seconds in (8, 15, 20, 25, 30):
        process = start(tmp_path / "killed")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert (tmp_path / "killed" / "nova-discrete-s0" / LAST_CHECKPOINT).is_file()
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")
    )
    assert first["metrics"] == second["metrics"]
