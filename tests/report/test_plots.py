"""The plots: the labels of points that lie close together can be read; losses by latent frame."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from arvid.evaluation.records import ResultRecord
from arvid.report import plots
from arvid.report.comparison import Comparison
from arvid.report.panels import legend_below, write_figure
from arvid.report.plots import apart, plain_ticks

NAMES = ("nova-cosine", "nova-linear", "nova-8-sets", "nova-deep", "nova-wide")
VALUES = ((61.3, 9.4), (62.0, 9.9), (63.1, 9.5), (60.5, 10.3), (65.0, 9.6))
"""Distance and frames per second."""


@pytest.fixture
def close(
    make_records: Callable[..., list[ResultRecord]], save_run: Callable[..., Path], tmp_path: Path
) -> Comparison:
    """Five runs of almost the same quality and speed, a far one and a row without a speed."""
    runs = [save_run(tmp_path / name, make_records(name)) for name in ("real", "untrained")]
    for name, (distance, speed) in zip(NAMES, VALUES, strict=True):
        record = make_records("nova")[0]
        metrics = (replace(record.metrics[0], value=distance), *record.metrics[1:])
        budget = replace(record.budget, frames_per_second=speed)
        runs.append(
            save_run(tmp_path / name, [replace(record, name=name, metrics=metrics, budget=budget)])
        )
    return Comparison.from_runs(runs)


@pytest.fixture
def by_frame(
    make_records: Callable[..., list[ResultRecord]], save_run: Callable[..., Path], tmp_path: Path
) -> Comparison:
    """Two rows of continuous tokens, of which one has no losses by latent frame, and two of discrete ones."""
    losses = {
        "a": ("continuous", (0.5, 0.4)),
        "b": ("continuous", ()),
        "c": ("discrete", (6.0, 5.0, 4.0)),
        "d": ("discrete", tuple(float(i) for i in range(12))),  # frame 10 comes after frame 2
    }
    runs = []
    for name, (token_type, values) in losses.items():
        frames = {f"val_frame_{i}": v for i, v in enumerate(values)}
        earlier = dict.fromkeys(frames, 9.0)
        curve = (
            {"step": 1.0, **earlier},
            {"step": 2.0, **frames},
            {"step": 3.0, "train_loss": 1.0},
        )
        factors = {"paradigm": name, "token_type": token_type}
        record = replace(make_records("nova")[0], name=name, factors=factors, curve=curve)
        runs.append(save_run(tmp_path / name, [record]))
    return Comparison.from_runs(runs)


def test_losses_by_latent_frame_are_those_of_the_last_validation(
    by_frame: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Callable[[Axes], None]] = []
    monkeypatch.setattr(plots, "panel", lambda _, draw, **kwargs: drawn.append(draw) or "")
    plot = plots.loss_by_latent_frame(by_frame)
    assert plot is not None
    assert [row.name for row in plot.rows] == ["a", "c", "d"]
    found = {}
    for draw in drawn:
        axis = Figure().subplots()
        draw(axis)
        lines = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
        found[axis.get_title(loc="left") or axis.get_title()] = lines
    assert found == {
        "continuous tokens": [[(0, 0.5), (1, 0.4)]],
        "discrete tokens": [[(0, 6.0), (1, 5.0), (2, 4.0)], [(i, i) for i in range(12)]],
    }


def test_rows_without_losses_by_latent_frame_have_no_plot(close: Comparison) -> None:
    assert plots.loss_by_latent_frame(close) is None


def overlaps(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pairs of labels that lie on each other in the plot as it is drawn."""
    drawn: list[Callable[[Axes], None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(plots, "panel", lambda _, draw, **kwargs: drawn.append(draw) or "")
        plots.quality_against_speed(comparison)
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axis = figure.subplots()
    drawn[0](axis)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == len(comparison.rows)
    return sum(bool(a.overlaps(b)) for a, b in combinations(boxes, 2))


def test_labels_of_close_points_are_spread(
    close: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overlaps(close, monkeypatch) <= 1
    monkeypatch.setattr(plots, "adjust_text", lambda *_, **__: None)
    assert overlaps(close, monkeypatch) == 10


def test_the_same_records_give_the_same_picture(close: Comparison) -> None:
    assert plots.quality_against_speed(close) == plots.quality_against_speed(close)


def test_a_figure_comes_for_pages_papers_and_slides(tmp_path: Path) -> None:
    def draw(axis: Axes) -> None:
        axis.plot([0, 1], [1, 2], label="a")
        legend_below(axis)

    for folder in ("first", "second"):
        write_figure(tmp_path / folder / "f", [draw, draw_plain], size=(4, 3))
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["f-column.pdf", "f-slide.png", "f.pdf", "f.png", "f.svg"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert read_png(tmp_path / "first/f.png").shape == (480, 1280, 3)
    assert read_png(tmp_path / "first/f-slide.png").shape == (720, 1920, 3)
    box = re.search(
        rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", (tmp_path / "first/f-column.pdf").read_bytes()
    )
    assert box is not None
    assert [float(x) for x in box.groups()] == pytest.approx([3.35 * 72, 2 * 3.35 * 72 * 3 / 4])


def draw_plain(axis: Axes) -> None:
    axis.plot([0, 1], [2, 1])


def read_png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_names_of_lines_stay_apart_and_inside() -> None:
    assert apart([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert apart([0.1, 0.12, 0.13], 0.1) == pytest.approx([0.1, 0.2, 0.3])
    assert apart([0.95, 0.97, 0.98], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert apart([], 0.1) == []


def test_the_name_of_a_line_that_widens_the_limits_stands_beside_it() -> None:
    axis = Figure().subplots()
    axis.plot([1, 2], [100, 120])
    axis.set_yscale("log")
    axis.axhline(4)
    plots.label_levels(axis, [(4, "low", "black")])
    (name,) = axis.texts
    assert 0 < name.get_position()[1] < 0.2  # as a share of the axis


@pytest.mark.parametrize("ends", [(12e12, 47e12), (1.0, 3.0), (8.0, 900.0), (8.0, 30_000.0)])
def test_a_logarithmic_axis_has_few_ticks(ends: tuple[float, float]) -> None:
    axis = Figure(figsize=(4, 3)).subplots()
    axis.set(xscale="log", xlim=ends)
    plain_ticks(axis.xaxis)
    assert 2 <= sum(ends[0] <= tick <= ends[1] for tick in axis.get_xticks()) <= 6


def test_one_legend_stands_below_all_panels() -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis in axes:
        axis.plot([1, 2], [1, 2], label="nova")
    legend_below(axes[0])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["nova"]
    assert legend.get_window_extent().y1 < min(axis.get_window_extent().y0 for axis in axes)
    other = Figure(figsize=(4, 3), layout="constrained")
    legend_below(other.subplots(), [Line2D([], [], label="95 % interval")])
    assert other.legends[0].get_texts()[0].get_text() == "95 % interval"
