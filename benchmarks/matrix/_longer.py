"""Clips longer than trained: which orders hold up beyond the length of their training clips.

Every order that can generate longer clips continues the first frame of validation clips, in windows of the trained
length that overlap by half. On sprites a classifier says at each step whether the requested shape and colour are still
shown. On your own clips the real continuation is known.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from arvid.benchmarks.matrix._figures import draw_curves
from arvid.benchmarks.matrix._rows import ORDERS, MatrixRow
from arvid.benchmarks.matrix._values import Cell, Curves
from arvid.contracts import UserError, VideoDataset
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.experiments.longer import (
    continued,
    longer_frames,
    rendered_anew,
    shown_steps,
    step_headings,
)
from arvid.experiments.paper import table
from arvid.experiments.variants import load_variant, score, usable
from arvid.report.numbers import decimals_for, fixed, with_uncertainty
from arvid.report.panels import legend_below, write_figure
from arvid.training.generator_module import GeneratorModule

NUM_CLIPS = 32
MAX_DECIMALS = 2


@dataclass(frozen=True, kw_only=True)
class Longer:
    """Quality of clips longer than trained at each autoregressive step."""

    curves: dict[str, Curves]
    """Label of a metric -> curves; empty if nothing was scored."""
    trained: int
    """Trained length in latent frames."""
    note: str = ""
    """Why nothing was scored."""


def score_longer(rows: Sequence[MatrixRow], options: argparse.Namespace) -> Longer:
    """Score clips of `--times` trained lengths, for the rows of the last size whose order can generate them."""
    size = options.sizes[-1]
    able = [row for row in rows if row.size == size and ORDERS[row.order].longer]
    if options.times == 1 or not able:
        return Longer(curves={}, trained=0)
    variants = [row.variant(options.fit_options) for row in able]
    model = load_variant(variants[0], options.out)
    try:
        protocol, real = scoring(model, options)
    except UserError as error:  # the videos are too short: the other results stand
        note = f"No clips of {options.times} trained lengths: {error}"
        print(note, flush=True)
        return Longer(curves={}, trained=0, note=note)
    overlap = max(model.paradigm.grid.t // 2, 1)
    variants = [dataclasses.replace(v, sampling={"overlap": overlap}) for v in variants]
    records = score(variants, [protocol], options.out, real={protocol.name: real}, references=())
    return Longer(curves=curves_of(able, records), trained=model.paradigm.grid.t)


def scoring(model: GeneratorModule, options: argparse.Namespace) -> tuple[Protocol, VideoDataset]:
    """The protocol and its real clips."""
    num_frames = longer_frames(model, options.times)
    rendered = options.data is None
    real, clip = (rendered_anew if rendered else continued)(model, num_frames)
    protocol = Protocol(
        name=f"{options.setting}-longer",
        summary=f"The first frame of clips continued to {options.times} times the trained length.",
        task="prediction",
        metrics=("attributes-over-time",) if rendered else ("psnr", "ssim", "lpips"),
        num_clips=min(options.num_clips or NUM_CLIPS, len(real)),
        clip=clip,
        condition_frames=1,
        frames_per_step=model.tokenizer.spec.strides[0],
        batch_size=16,
    )
    return usable(protocol)[0], real


def curves_of(rows: Sequence[MatrixRow], records: Sequence[ResultRecord]) -> dict[str, Curves]:
    """Label of each metric -> the values of all seeds at each step."""
    by_name = {row.name: row for row in rows}
    found: dict[str, dict[Cell, list[tuple[float, ...]]]] = {}
    for record in records:
        row = by_name[record.name]
        for metric in record.metrics:
            if metric.name not in record.rollout:
                continue
            label = f"{metric.heading} ({metric.unit})" if metric.unit else metric.heading
            values = found.setdefault(label, {}).setdefault((row.order, row.token_type), [])
            values.append(record.rollout[metric.name].mean)
    return {
        label: {cell: np.array(values) for cell, values in cells.items()}
        for label, cells in found.items()
    }


def lines_of(longer: Longer) -> list[str]:
    """A table per metric: each row at the ends of one, two, ... trained lengths, mean and standard error over seeds."""
    lines = [longer.note, ""] if longer.note else []
    for label, cells in longer.curves.items():
        steps = shown_steps(next(iter(cells.values())).shape[1], longer.trained)
        decimals = min(decimals_for([float(v.mean()) for v in cells.values()]), MAX_DECIMALS)
        made = [
            [" ".join(cell), *(_with_error(values[:, step - 1], decimals) for step in steps)]
            for cell, values in cells.items()
        ]
        lines += [f"## Beyond the trained length: {label}", ""]
        lines += [*table(("", *step_headings(steps, longer.trained)), made), ""]
    return lines


def _with_error(values: np.ndarray, decimals: int) -> str:
    """Mean over seeds and, with several seeds, its standard error."""
    if len(values) == 1:
        return fixed(float(values[0]), decimals)
    error = values.std(ddof=1) / len(values) ** 0.5
    return with_uncertainty(float(values.mean()), float(error), decimals)


def draw(path: Path, longer: Longer, orders: Sequence[str]) -> None:
    """One panel per metric: mean over seeds at each step, with the end of the trained length marked."""
    draws = [
        partial(
            _panel,
            title=label,
            cells=cells,
            trained=longer.trained,
            orders=orders,
            legend=i == 0,
        )
        for i, (label, cells) in enumerate(longer.curves.items())
    ]
    write_figure(path, draws, columns=min(len(draws), 2), size=(5.2, 3.8))


def _panel(
    axis: Axes, title: str, cells: Curves, trained: int, orders: Sequence[str], *, legend: bool
) -> None:
    draw_curves(axis, cells, orders, first=1)
    axis.axvline(trained - 1, color="#66727d", lw=1, ls=":")
    axis.set(xlabel="latent frame after the given one (dotted: trained length)", title=title)
    if legend:
        legend_below(axis)
