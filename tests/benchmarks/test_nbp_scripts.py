"""NBP's tables and figures: each script trains, scores and writes at a tiny size, beside the paper's numbers."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import pytest

from arvid.benchmarks.nbp._common import SIZES, Task, chosen_protocol
from arvid.benchmarks.nbp.figures8_9_blocks import default_blocks
from arvid.cli import main
from arvid.contracts import TokenGrid, UserError
from arvid.experiments.side_by_side import Job
from arvid.paradigms.next_block.layout import block_order

TINY = [
    "--num-clips=2",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--data.clips_per_step=2",
    "--model.init_args.size.dim=32",
    "--model.init_args.size.depth=2",
    "--model.init_args.size.num_heads=2",
    *(f"--data.{part}.init_args.num_clips=4" for part in ("train", "val")),
    *(f"--data.{part}.init_args.num_frames=9" for part in ("train", "val")),
]

Bench = Callable[..., str]


@pytest.fixture(scope="module")
def trained() -> dict[tuple[str, ...], Path]:
    """Runs by the arguments that they were trained with: the scripts have most of theirs in common."""
    return {}


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[tuple[str, ...], Path]
) -> Bench:
    """Runs a script into tmp_path/out with one size, training in this process; gives its page."""

    def train_here(jobs: Sequence[Job], logs: Path) -> None:
        for job in jobs:
            place = job.arguments.index("--run") + 1
            run = Path(job.arguments[place])
            key = (*job.arguments[:place], *job.arguments[place + 1 :])
            if key in trained:
                shutil.copytree(trained[key], run)
            else:
                assert main(list(job.arguments)) == 0
                trained[key] = tmp_path / "trained" / run.name
                shutil.copytree(run, trained[key])

    monkeypatch.setattr("arvid.experiments.variants.run_side_by_side", train_here)
    monkeypatch.setitem(SIZES, "demo", {"d6w128": "tiny"})
    monkeypatch.setattr("arvid.experiments.variants.MIN_SECONDS", 0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "nothing"))

    def run(name: str, *arguments: str) -> str:
        out = tmp_path / "out"
        assert main(["bench", f"nbp/{name}", f"--out={out}", *arguments, *TINY]) == 0
        return (out / "table.md").read_text()

    return run


def line(page: str, start: str) -> list[str]:
    """Cells of the first line of a table that begins so."""
    found = next(row for row in page.splitlines() if row.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_blocks(bench: Bench, tmp_path: Path) -> None:
    blocks = [f"--block={block}" for block in ("1x1x8", "3x2x2", "1x8x8")]
    page = bench("figures8_9_blocks", *blocks, "--rounds", "4")
    assert line(page, "1x1x1") == ["1x1x1", "1", "768", "29.0", "0.80"]
    assert line(page, "1x16x16") == ["1x16x16", "256", "3", "", "17.14"]
    assert "> No fvd: " in page
    headings = line(page, "")
    cells = {name: dict(zip(headings, line(page, name), strict=True)) for name in names(tmp_path)}
    steps = {name: row["steps"] for name, row in cells.items()}
    assert steps == {
        "1x1x8": "8",
        "3x2x2": "16",
        "1x8x8": "1",
        "1x8x8-to-T0.5": "1",
        "1x8x8-reveal": "1",
        "1x8x8-reveal-4-rounds": "4",
    }
    assert cells["1x1x8"]["tokens / block"] == "8"
    assert 5 < float(cells["1x1x8"]["loss ↓"]) < 11  # log 3125 is 8.05
    assert cells["1x8x8-to-T0.5"]["loss ↓"] == ""
    assert cells["1x8x8"]["FD (sprites) ↓"] != cells["1x8x8-to-T0.5"]["FD (sprites) ↓"]
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["losses"]["common"].keys() == {"1x1x8", "3x2x2", "1x8x8", "1x8x8-reveal"}
    assert [p["val_loss"] for p in result["losses"]["common"]["1x8x8"] if "val_loss" in p]
    for name in ("figure8.png", "figure9.png", "index.html"):
        assert (tmp_path / "out" / name).stat().st_size > 5000


def test_default_blocks_tile_the_grid() -> None:
    for scale, grid in (("lab", TokenGrid(5, 16, 16)), ("demo", TokenGrid(5, 8, 8))):
        options = argparse.Namespace(scale=scale, tokenizer=None, data=None)
        blocks = default_blocks(options)
        assert all(len(block_order(grid, block)) == grid.num_tokens for block in blocks)
        assert blocks[-2:] == [(5, grid.h // 4, grid.w // 4), (1, grid.h, grid.w)]
        assert (1, 8, 8) in blocks


def names(tmp_path: Path) -> list[str]:
    """Trained rows of a finished script."""
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    return [row["name"] for row in rows if row["row"] == "trained"]


def test_sizes_and_both_methods(bench: Bench, tmp_path: Path) -> None:
    page = bench("table2_figure5_sizes")
    assert line(page, "700M") == ["700M", "NTP", "38.5", "768", "0.80"]
    assert line(page, "3B")[1:] == ["NTP", "28.1", "768", "0.60"]
    assert names(tmp_path) == ["d6w128 NTP", "d6w128 NBP"]
    headings = line(page, "")
    rows = [dict(zip(headings, line(page, n), strict=True)) for n in names(tmp_path)]
    assert [row["steps"] for row in rows] == ["64", "8"]
    assert all(float(row["frames / s ↑"]) > 0 for row in rows)
    assert (tmp_path / "out/figure5.png").stat().st_size > 5000


def test_systems(bench: Bench) -> None:
    page = bench("table3_systems", "--task=class", "--task=frames")
    alone, given = re.split("^## Five frames", page, flags=re.MULTILINE)
    assert line(alone, "NBP, its repository, published")[:4] == [
        "NBP, its repository, published",
        "semi-AR",
        "700M",
        "103.3",
    ]
    assert line(alone, "TATS, published")[3] == "332"
    assert line(given, "NBP, published")[3:7] == ["25.5", "21.1", ".724", ".070"]
    assert "TATS" not in given.split("# Next-block prediction")[0]
    assert float(line(given, "d6w128")[4]) > 5  # PSNR
    assert "class-and-frame" not in page


def test_attention(bench: Bench, tmp_path: Path) -> None:
    page = bench("figures11_12_attention")
    shares = json.loads((tmp_path / "out/results.json").read_text())["shares"]
    assert all(value == 0 for value in shares["1x1x1"]["own frame, after itself"])
    assert all(value > 0.05 for value in shares["1x8x8"]["own frame, after itself"])
    for parts in shares.values():
        assert [sum(layer) for layer in zip(*parts.values(), strict=True)] == pytest.approx([1, 1])
    assert page.count("| 1x8x8 |") == 2  # layers
    for name in ("figure11.png", "figure12.png"):
        assert cv2.imread(str(tmp_path / "out" / name)).shape[0] > 500


def test_samples(bench: Bench, tmp_path: Path) -> None:
    page = bench("figures13_15_samples")
    assert "- figure15: real clip, 1x1x1, 1x1x8, 1x8x8" in page
    assert "- figure13: real clip, d6w128\n" in page
    picture = cv2.imread(str(tmp_path / "out/figure14.png"))
    # 2 clips, each real and a size; a line of frame numbers, a line for each prompt, names on the left
    assert picture.shape[0] == 20 + 2 * (24 + 2 * 100 - 4) + 4
    assert 9 * 100 - 4 < picture.shape[1] < 9 * 100 + 100
    page = bench("figures13_15_samples", f"--checkpoint=1x8x8={tmp_path / 'out/1x8x8'}")
    assert "figure15: real clip, 1x8x8" in page
    assert "figure14" not in page


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scale=paper"], "needs --k600-train here"),
        (["--scale=lab", "--data=."], "--data is no option of the scale lab"),
        (["--scale=paper", "--checkpoint=a=b"], "--checkpoint is no option of the scale paper"),
        (["--k600-checkpoint=a=b"], "--k600-checkpoint is no option of the scale demo"),
        (["--data=."], "need a tokenizer of their own"),
        (["--checkpoint=runs/a"], "NAME=PATH"),
    ],
)
def test_what_it_cannot_do_without(
    bench: Bench,
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["bench", "nbp/table2_figure5_sizes", f"--out={tmp_path}", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_the_scale_paper_trains_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of table 3's frame prediction, which are not run."""
    jobs: list[Job] = []

    def keep(found: Sequence[Job], logs: Path) -> None:
        jobs.extend(found)
        raise UserError("enough")

    monkeypatch.setattr("arvid.experiments.variants.run_side_by_side", keep)
    given = ["--k600-train=.", "--k600-val=.", "--k600-tokenizer=nbp.safetensors"]
    name = "nbp/table2_figure5_sizes"
    assert main(["bench", name, "--scale=paper", *given, f"--out={tmp_path}"]) == 2
    assert [job.name for job in jobs][:2] == ["700M NTP", "700M NBP"]
    options = jobs[3].arguments
    configs = [options[i + 1] for i, o in enumerate(options) if o == "--config"]
    assert configs == ["settings/nbp-paper-k600", "paradigms/nbp-paper-k600", "sizes/d24w2048"]
    assert "--trainer.max_steps=120000" in options  # 20 epochs
    assert "--model.init_args.paradigm.init_args.block=[1,1,16]" in options


def test_another_protocol_goes_to_the_task_with_its_given_frames(tmp_path: Path) -> None:
    def chosen(task: Task, *names: str) -> str:
        options = argparse.Namespace(protocol=list(names))
        return chosen_protocol(options, task).name

    both = ("nbp-k600-fp-paper", "nbp-ucf101-cfp-paper")
    assert chosen("frames") == "nbp-k600-fp"
    assert chosen("frames", *both) == both[0]
    assert chosen("class and frame", *both) == both[1]
    assert chosen("class", *both) == "nbp-ucf101-cg"
    with pytest.raises(UserError, match="2 protocols for frames"):
        chosen("frames", "nbp-k600-fp-paper", "nbp-k600-fp")
    path = tmp_path / "nine.yaml"
    path.write_text("base: nbp-k600-fp\ncondition_frames: 9\n")
    with pytest.raises(UserError, match="not 9"):
        chosen("frames", str(path))
