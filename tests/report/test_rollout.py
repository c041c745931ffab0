"""The figure of roll-outs, from records and from runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.records import ResultRecord, load_run
from arvid.metrics.rollout import StepCurve
from arvid.report.comparison import Comparison
from arvid.report.plots import quality_per_frame
from arvid.report.rollout import rollouts

MakeRecords = Callable[..., list[ResultRecord]]
SaveRun = Callable[..., Path]


@pytest.fixture
def compared(make_records: MakeRecords, save_run: SaveRun, tmp_path: Path) -> Comparison:
    """Two rows with roll-outs of PSNR, by steps of four frames, and of SSIM, without errors."""
    runs = []
    for name in ("nova", "reconstruction"):
        record = make_records(name)[1]
        curve = StepCurve(
            mean=(30.0, 25.0, 21.0), standard_error=(0.5, 1.0, 2.0), num_clips=9, frames_per_step=4
        )
        found = {"psnr": curve, "ssim": replace(curve, standard_error=None, frames_per_step=1)}
        runs.append(save_run(tmp_path / name, [replace(record, rollout=found)]))
    return Comparison.from_runs(runs)


def test_a_panel_for_each_metric_with_a_band_for_each_line(compared: Comparison) -> None:
    plot = rollouts(compared)
    assert plot is not None
    psnr, ssim = plot.panels
    assert "PSNR (dB) ↑ · sprites-fp" in psnr
    assert "autoregressive step (4 frames each)" in psnr
    assert "predicted frame" in ssim
    assert (psnr.count("FillBetween"), ssim.count("FillBetween")) == (2, 0)
    assert [row.name for row in plot.rows] == ["reconstruction", "nova"]
    assert "stroke-dasharray" in psnr
    assert plot == rollouts(compared)


def test_a_rollout_stands_in_the_place_of_quality_per_frame(
    compared: Comparison, runs: list[Path]
) -> None:
    assert quality_per_frame(compared) is None
    without = Comparison.from_runs(runs)
    assert rollouts(without) is None
    assert quality_per_frame(without) is not None


def test_from_runs_to_the_figure(trained_run: Path, tmp_path: Path) -> None:
    """A small `nova-extrapolation`: model, ceiling and last given frame, step by step, on the page."""
    for i, clip in enumerate(Sprites(3, num_frames=17, size=32)):
        write_video(tmp_path / f"real/{i}.mp4", clip.video, 12, crf=0)
    protocol = tmp_path / "small-extrapolation.yaml"
    protocol.write_text(
        "base: nova-extrapolation\nsummary: small\nmetrics: [psnr, ssim]\nnum_clips: 3\n"
        "clip: {num_frames: 17, size: 32}\n"
    )
    references = tmp_path / "references"
    asked = ["evaluate", str(trained_run), f"--protocol={protocol}", f"--real={tmp_path / 'real'}"]
    assert main([*asked, f"--references={references}"]) == 0
    rows = [*sorted(references.iterdir()), trained_run]
    assert main(["compare", *map(str, rows), f"--out={tmp_path / 'report'}"]) == 0
    curves = {
        record.name: record.rollout
        for row in rows
        for record in load_run(row)
        if record.protocol_name == "small-extrapolation"
    }
    (trained_run / "evaluation/small-extrapolation.json").unlink()  # shared with other tests
    assert set(curves) == {
        "next_block",
        "reconstruction (discrete)",
        "first frame repeated",
        "untrained (next_block)",
    }
    assert {len(c.mean) for found in curves.values() for c in found.values()} == {4}
    page = (tmp_path / "report/index.html").read_text()
    assert "Quality against the autoregressive step" in page
    assert "autoregressive step (4 frames each)" in page
    assert "PSNR (dB) ↑ · small-extrapolation" in page
