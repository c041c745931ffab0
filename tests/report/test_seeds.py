"""Rows that differ in the training seed alone are one row: their mean, with the spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord, load, save
from arvid.metrics.rollout import StepCurve
from arvid.report import tables
from arvid.report.comparison import Comparison
from arvid.report.page import write_report

MakeRecords = Callable[..., list[ResultRecord]]
Save = Callable[..., Path]
VALUES = {0: 60.0, 1: 64.0, 2: 71.0}


@pytest.fixture
def seed(make_records: MakeRecords, save_run: Callable[..., Path], tmp_path: Path) -> Save:
    """`seed(row, number, shift)`: the run of a row with a training seed, whose first metric is VALUES + shift."""

    def save(row: str, number: int, shift: float = 0.0, **changes: Any) -> Path:
        found = []
        for record in make_records(row, ["a"]):
            trained = record.row == "trained"
            curve = StepCurve(
                mean=(20.0 + number,), standard_error=(0.1,), num_clips=9, frames_per_step=4
            )
            made = replace(
                record,
                name=f"{row}-seed{number}" if trained else row,
                setting={**record.setting, "seed": number, "data.seed": 0},
                setting_hash=f"hash{number}",
                metrics=tuple(replace(m, value=VALUES[number] + shift) for m in record.metrics[:1]),
                rollout={"psnr": curve},
                budget=replace(record.budget, frames_per_second=10.0 * (number + 1))
                if trained
                else record.budget,
            )
            found.append(replace(made, **changes))
        return save_run(tmp_path / f"{row}-{number}-{len(changes)}", found)

    return save


def test_the_mean_over_seeds_with_its_deviation(seed: Save, tmp_path: Path) -> None:
    runs = [seed("nova", n) for n in (2, 0, 1)] + [seed("next_block", n, 30.0) for n in (0, 1, 2)]
    runs.append(seed("reconstruction", 0))
    found = write_report(runs, tmp_path / "report")
    assert [row.name for row in found.rows] == [
        "reconstruction",
        "nova (3 seeds)",
        "next_block (3 seeds)",
    ]
    column = next(c for c in found.columns if c.key == "sprites-t2v/fd-sprites")
    cells = {row.name: row.cell(column) for row in found.rows}
    nova = cells["nova (3 seeds)"]
    assert nova.value == pytest.approx(65)
    assert nova.spread == pytest.approx(statistics.stdev(VALUES.values()))
    assert (nova.best, nova.detail) == (True, "256 samples of each of 3 seeds")
    assert "± is the standard deviation over training seeds" in column.detail
    speed = next(c for c in found.columns if c.key.endswith("/frames_per_second"))
    assert found.rows[1].cell(speed).value == 20
    assert found.notes[0] == (
        "Means over training seeds, ± their standard deviation: nova (3 seeds): 0, 1, 2; "
        "next_block (3 seeds): 0, 1, 2"
    )
    assert "65.0 ± 5.6" in tables.markdown(found)
    curve = found.rows[1].records[1].rollout["psnr"]
    assert curve.mean == (21,)
    assert curve.standard_error == pytest.approx((1 / 3**0.5,))
    stored = json.loads((tmp_path / "report/table.json").read_text())["rows"][1]["records"]
    assert [r["setting_hash"] for r in stored] == [f"hash{n}" for n in (0, 0, 1, 1, 2, 2)]
    page = (tmp_path / "report/index.html").read_text()
    assert all(f">nova-{n}-0</a></td>" in page for n in range(3))


def test_rows_within_noise_are_told_by_the_seeds(seed: Save) -> None:
    """The standard error of three seeds is 3.2; the seeds of two rows give t 2.8: a difference of 10 may be chance."""
    near = [seed(name, n, s) for name, s in (("nova", 0), ("next_block", 10)) for n in range(3)]
    assert any("pooled over the rows)" in note for note in Comparison.from_runs(near).notes)
    # t would be 4.3, and 15 within noise, if each row's three seeds stood alone
    apart = near[:3] + [seed("next_block", n, 15) for n in range(3)]
    assert not any("Within noise" in note for note in Comparison.from_runs(apart).notes)
    far = [seed("next_token", n, 30) for n in range(3)] + near[:3]
    assert not any("Within noise" in note for note in Comparison.from_runs(far).notes)


def test_other_seeds_than_the_other_rows_are_another_setting(seed: Save) -> None:
    runs = [seed("nova", n) for n in range(3)] + [seed("next_block", 0)]
    with pytest.raises(UserError, match=r"seed: \[0, 1, 2\] \(nova .* · 0 \(next_block") as caught:
        Comparison.from_runs(runs)
    assert "data.seed" not in str(caught.value)
    assert len(Comparison.from_runs(runs, allow_different_settings=True).rows) == 2
    alone = [seed("nova", 0), seed("next_block", 1)]
    with pytest.raises(UserError, match="seed: 0 "):
        Comparison.from_runs(alone)


def test_reference_rows_have_no_training_seed(seed: Save) -> None:
    runs = [seed("nova", 1), seed("reconstruction", 0), seed("untrained", 2)]
    assert len(Comparison.from_runs(runs).rows) == 3


def test_only_what_differs_in_nothing_else_is_merged(seed: Save) -> None:
    ablation = [seed("nova", 0), seed("nova", 1, options={"paradigm.depth": "3"})]
    with pytest.raises(UserError, match="seed: 0"):
        Comparison.from_runs(ablation)
    twice = [seed("nova", 0), seed("nova", 0, name="again")]
    assert [row.name for row in Comparison.from_runs(twice).rows] == ["nova-seed0", "again"]


def test_a_seed_from_before_an_option_has_its_default(seed: Save) -> None:
    old, new = seed("nova", 0, options={}), seed("nova", 1, options={"size.head_dim": "256"})
    assert len(Comparison.from_runs([old, new]).rows) == 1
    with pytest.raises(UserError, match="seed: 0"):
        Comparison.from_runs([old, seed("nova", 2, options={"size.head_dim": "128"})])


def sampled_otherwise(run: Path, overlap: int) -> Path:
    """The run, with another sampling option in its second protocol."""
    path = run / "evaluation/sprites-fp.json"
    record = load(path)
    save(replace(record, options={**record.options, "sampling.overlap": str(overlap)}), path)
    return run


def test_options_of_one_protocol_do_not_keep_seeds_apart(seed: Save) -> None:
    runs = [sampled_otherwise(seed("nova", n), overlap=1) for n in (0, 1, 2)]
    assert [row.name for row in Comparison.from_runs(runs).rows] == ["nova (3 seeds)"]
    sampled_otherwise(runs[2], overlap=2)
    with pytest.raises(UserError, match="under sprites-fp with different options"):
        Comparison.from_runs(runs)


def test_seeds_that_were_not_scored_alike_are_refused(seed: Save) -> None:
    runs = [seed("nova", 0), seed("nova", 1)]
    (runs[1] / "evaluation/sprites-fp.json").unlink()
    with pytest.raises(UserError, match="only one is scored under sprites-fp"):
        Comparison.from_runs(runs)
    path = runs[0] / "evaluation/sprites-t2v.json"
    record = load(path)
    first = replace(record.metrics[0], feature_sha256="other")
    save(replace(record, metrics=(first, *record.metrics[1:])), path)
    (runs[0] / "evaluation/sprites-fp.json").unlink()
    with pytest.raises(UserError, match="with different metrics or feature networks"):
        Comparison.from_runs(runs)


def test_a_seed_that_failed_is_a_failure_of_the_row(seed: Save) -> None:
    runs = [seed("nova", 0), seed("nova", 1, metrics=(), error="out of memory")]
    (row,) = Comparison.from_runs(runs).rows
    assert set(row.errors.values()) == {"out of memory"}
