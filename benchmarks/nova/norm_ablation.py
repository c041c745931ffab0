"""Position of the norms in NOVA (arXiv 2412.14169, section 4.4, appendix B, figure 8b).

Trains NOVA with norms before the branches, after the residual sums, and on the branches before the sums (NOVA's
choice), one after another under one setting. Two more rows have norms before the branches, with what the paper tried
against the instability: dropout on the residual branches, and stochastic depth. Records variance and largest value of
the blocks' outputs. The paper reports overflow and unstable variance for norms before the branches. Values above 65,504
overflow in half precision; a short training shows the trend. A training with a loss that is not finite also gets a row.

example:
  arvid bench nova/norm_ablation --trainer.max_steps=600

Writes table.md, results.json, index.html and figure8b.png: variance and largest value over training and over depth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arvid.benchmarks.nova import _common as nova
from arvid.contracts import UserError
from arvid.evaluation.curves import read_curve
from arvid.evaluation.records import ResultRecord
from arvid.experiments.paper import Cell, headings, metric_cells, plain_records, table, write_page
from arvid.experiments.variants import Variant, folders, score, train
from arvid.report import tables
from arvid.report.page import write_report
from arvid.report.panels import colours, legend_below, write_figure
from arvid.report.plots import plain_ticks
from arvid.training.activations import FP16_MAX, LARGEST, VARIANCE, block_names

ROWS: dict[str, dict[str, str | float]] = {
    "before the branch": {"norm": "pre"},
    "before, residual dropout": {"norm": "pre", "dropout": 0.1},
    "before, stochastic depth": {"norm": "pre", "stochastic_depth": 0.1},
    "after the residual": {"norm": "post"},
    "branch, before the residual": {"norm": "branch"},
}
"""Options of NOVA: the paper's figure 2 of the appendix from left to right, and two remedies of section 4.4. The last
row is NOVA's."""
WATCH = "--trainer.callbacks+=arvid.training.activations.Activations"
NOTES = (
    "Published: figure 8b shows curves; their values are not given in words or tables. Variance and largest value are "
    "those of the outputs of transformer blocks in the steps that are logged, in the precision of training.",
    "Section 4.4 says that stochastic depth and residual dropout helped less, without values or rates; both rates are "
    "0.1 here.",
)

STACKS = ("temporal", "spatial.encoder", "spatial.decoder")
"""Stacks of blocks, in order of computation."""

Series = dict[str, list[tuple[float, float]]]
"""Block -> (step, value) pairs in order of steps."""


def main() -> None:
    """Train, score, draw, write."""
    options = nova.read_arguments(nova.parser(__doc__ or "", "runs/nova-norms"))
    rows = [nova.variant(name, options, **given) for name, given in ROWS.items()]
    failed = train_each(rows, options)
    protocol, notes = nova.protocol(options)
    finished = [row for row in rows if row.name not in failed]
    records = score(finished, [protocol], options.out)
    comparison = write_report(folders(records), options.out, title="Where NOVA's norms sit")
    logged = {
        row.name: {part: read_blocks(options.out / row.name, part) for part in (VARIANCE, LARGEST)}
        for row in rows
    }
    watched = {name: found for name, found in logged.items() if all(found.values())}
    shades = ("#0072B2", "#56B4E9", "#CC79A7", "#D55E00", "#009E73")
    palette = dict(zip(ROWS, shades, strict=True))
    palette |= {
        name: colour for name, colour in colours(comparison.rows).items() if name in palette
    }
    draw(options.out / "figure8b", watched, palette)
    lines = [*our_table(records, watched, failed), "", tables.markdown(comparison)]
    results = {
        "scale": options.scale,
        "blocks": watched,
        "failed": failed,
        "records": plain_records(records),
    }
    write_page(options.out, "NOVA: where the norms sit", lines, [*NOTES, *notes], results)


def train_each(rows: Sequence[Variant], options: argparse.Namespace) -> dict[str, str]:
    """Train the variants one after another. Returns the errors of failed ones. Raises UserError if all failed."""
    failed = {}
    for row in rows:
        try:
            train([row], options.out, [WATCH, *nova.shared_options(options)])
        except UserError as error:
            if "not finite" not in str(error):
                raise
            print(f"{row.name}: {error}", file=sys.stderr)
            failed[row.name] = str(error).splitlines()[-1]
    if len(failed) == len(rows):
        raise UserError("All trainings failed: lower --model.init_args.optimizer.lr.")
    return failed


def read_blocks(run: Path, part: str) -> Series:
    """The blocks' statistics in a run's logs."""
    found: Series = {}
    for name in sorted(block_names(run), key=place):
        points = [(p["step"], p.get("train_loss")) for p in read_curve(run, part + name)]
        found[name] = [(s, v) for s, v in points if s is not None and v is not None]
    return found


def place(block: str) -> tuple[int, int]:
    """Position of a block in the network, for sorting: `temporal.3`, `spatial.encoder.0`, `spatial.decoder.0`."""
    stack, _, index = block.rpartition(".")
    return STACKS.index(stack), int(index)


def our_table(
    records: Sequence[ResultRecord],
    watched: Mapping[str, Mapping[str, Series]],
    failed: Mapping[str, str],
) -> list[str]:
    """One line per row: the blocks' largest values over training, and the scores."""
    metrics = headings(records, {})
    by_name = {record.name: record for record in records}
    lines: list[list[Cell]] = []
    for name in [*(r.name for r in records if r.row == "reference"), *ROWS]:
        found = watched.get(name)
        cells: list[Cell] = [None] * 4
        if found:
            first, final = (largest_at(found[VARIANCE], end) for end in (0, -1))
            peak = max(value for points in found[LARGEST].values() for _, value in points)
            cells = [first, final, peak, "no" if peak <= FP16_MAX else "yes"]
        label = name if found else f"*{name}*"
        note = f" (stopped: {failed[name]})" if name in failed else ""
        lines.append([label + note, *cells, *metric_cells(by_name.get(name), list(metrics))])
    watching = ("variance at first", "variance at last", "largest value", "beyond fp16")
    return table(("", *watching, *metrics.values()), lines)


def largest_at(series: Series, end: int) -> float:
    """Maximum over blocks at the first (0) or last (-1) logged step."""
    return max(points[end][1] for points in series.values())


def draw(
    path: Path, watched: Mapping[str, Mapping[str, Series]], palette: Mapping[str, str]
) -> None:
    """Maximum over blocks against training steps, and each block's last value against depth."""

    def over_training(axis: Axes, part: str, title: str) -> None:
        for name, found in watched.items():
            columns = list(zip(*found[part].values(), strict=True))
            steps = [column[0][0] for column in columns]
            values = [max(value for _, value in column) for column in columns]
            axis.plot(steps, values, color=palette[name], label=name)
        axis.set(xlabel="training step", yscale="log", title=title)
        plain_ticks(axis.yaxis)

    def peaks(axis: Axes) -> None:
        over_training(axis, LARGEST, "Largest value, of all blocks")
        axis.axhline(FP16_MAX, color="#c0392b", lw=1.2)
        axis.annotate(
            "fp16 overflows", (0, FP16_MAX), (2, -10), textcoords="offset points", fontsize=8
        )
        legend_below(axis)

    def over_depth(axis: Axes) -> None:
        for name, found in watched.items():
            ends = [points[-1][1] for points in found[VARIANCE].values()]
            axis.plot(range(1, len(ends) + 1), ends, "o-", ms=3, color=palette[name], label=name)
        axis.set(xlabel="block", yscale="log", title="Variance at the end, by block")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_ticks(axis.yaxis)

    variance = partial(over_training, part=VARIANCE, title="Variance, largest of all blocks")
    write_figure(path, [variance, peaks, over_depth])


if __name__ == "__main__":
    main()
