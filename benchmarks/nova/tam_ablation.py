"""NOVA with and without temporal autoregressive modelling (arXiv 2412.14169, section 4.4, appendix E).

Without it, temporal layers attend in both directions and every set of tokens covers the whole clip. The paper found
less motion, and slower generation because nothing can be cached. Trains both under one setting and scores clips
generated from conditions only: distance to real clips, amount of motion, time per clip.

The table includes VBench's scores, as in the paper, if OUT/nova and OUT/without-TAM have VBench records
(`arvid evaluate vbench`).

examples:
  arvid bench nova/tam_ablation
  arvid bench nova/tam_ablation --data videos/ --tokenizer vae3d.ckpt --trainer.max_steps=600

Writes table.md, results.json, index.html, tam.png (time against length) and clips.png (for each caption a real clip,
then one clip with and one without).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from arvid.benchmarks.nova import _common as nova
from arvid.contracts import Clip
from arvid.evaluation.records import ResultRecord, load
from arvid.evaluation.rows import validation_set
from arvid.experiments.paper import (
    Cell,
    headings,
    metric_cells,
    plain_records,
    row_name,
    table,
    write_page,
)
from arvid.experiments.variants import (
    Variant,
    folders,
    load_variant,
    now,
    score,
    train,
)
from arvid.report import tables
from arvid.report.page import write_report
from arvid.report.panels import TRAINED, legend_below, write_figure
from arvid.sampling.sample import Conditions, sample
from arvid.suites.vbench.record import Layout
from arvid.training.generator_module import GeneratorModule

WITH, WITHOUT = "nova", "without-TAM"
PUBLISHED = {WITH: (75.84, 23.27, 12.0), WITHOUT: (75.38, 11.38, 39.0)}
"""Appendix, table 2: VBench's total and dynamic degree in percent, seconds (A100 of 40 GB, 29 frames of 768x480)."""
LENGTHS = (1, 2, 3)
"""Lengths of the timed clips, in multiples of the trained length."""
REPEATS = 3

Seconds = dict[str, dict[int, float]]
"""By row and frames."""


def main() -> None:
    """Train, score, time, write."""
    options = nova.read_arguments(nova.parser(__doc__ or "", "runs/nova-tam"))
    rows = [nova.variant(WITH, options), nova.variant(WITHOUT, options, tam="false")]
    train(rows, options.out, nova.shared_options(options))
    protocol, notes = nova.protocol(options)
    records = score(rows, [protocol], options.out)
    seconds = time_rows(rows, options.out)
    comparison = write_report(folders(records), options.out, title="NOVA without TAM")
    draw(options.out / "tam", seconds)
    shown = [r for name in ("real", WITH, WITHOUT) for r in records if r.name == name]
    nova.write_clips(options.out / "clips.png", shown)
    results = {
        "scale": options.scale,
        "published": PUBLISHED,
        "seconds_by_frames": seconds,
        "records": plain_records(records),
    }
    lines = [*ours(records, seconds, options), "", tables.markdown(comparison)]
    write_page(options.out, "NOVA: temporal autoregressive modelling", lines, notes, results)


def time_rows(rows: Sequence[Variant], out: Path) -> Seconds:
    """Seconds for one clip at several lengths: the fastest of several runs after a warm-up. The rows alternate."""
    models = {row.name: load_variant(row, out) for row in rows}
    first = next(iter(models.values()))
    grid = first.paradigm.grid
    lengths = [
        first.tokenizer.spec.num_frames(dataclasses.replace(grid, t=grid.t * n)) for n in LENGTHS
    ]
    found: Seconds = {name: {} for name in models}
    clip = validation_set(first)[0]
    for frames in lengths:
        for turn in range(1 + REPEATS):
            for name, model in models.items():
                took = seconds(model, clip, frames)
                if turn:
                    found[name][frames] = min(took, found[name].get(frames, took))
    return found


def seconds(model: GeneratorModule, clip: Clip, num_frames: int) -> float:
    """Seconds to generate one clip, decoding included."""
    before = now(model.device)
    sample(model, Conditions.of_clips([clip]), num_frames=num_frames, progress=False)
    return now(model.device) - before


def ours(
    records: Sequence[ResultRecord], seconds: Seconds, options: argparse.Namespace
) -> list[str]:
    """The published numbers beside ours."""
    metrics = headings(records, {})
    titles = ("", "VBench total ↑", "dynamic degree ↑", *metrics.values(), "s per clip ↓")
    lines: list[list[Cell]] = [
        [f"{name}, published", total, dynamic, *[None] * len(metrics), took]
        for name, (total, dynamic, took) in PUBLISHED.items()
    ]
    for record in records:
        by_frames = seconds.get(record.name)
        lines.append(
            [
                row_name(record),
                *vbench(options.out / record.name),
                *metric_cells(record, list(metrics)),
                next(iter(by_frames.values())) if by_frames else None,
            ]
        )
    growth = [
        f"Seconds for {', '.join(f'{n} frames' for n in found)} ({name}): "
        f"{', '.join(f'{value:.3g}' for value in found.values())}."
        for name, found in seconds.items()
    ]
    return [*table(titles, lines), "", *growth]


def vbench(row: Path) -> list[Cell]:
    """Total and dynamic degree in a row's VBench record; blank without a record."""
    path = Layout(row).record
    record = load(path) if path.is_file() else None
    return metric_cells(record, ["vbench-total", "vbench-dynamic-degree"])


def draw(path: Path, seconds: Seconds) -> None:
    """Seconds against the length of a clip."""

    def panel(axis: Axes) -> None:
        for (name, found), colour in zip(seconds.items(), TRAINED, strict=False):
            axis.plot(list(found), list(found.values()), "o-", color=colour, label=name)
        axis.set(
            xlabel="length of the clip (frames)",
            ylabel=f"seconds for one clip, best of {REPEATS}",
            title="Time against length",
        )
        axis.set_ylim(bottom=0)
        legend_below(axis)

    write_figure(path, [panel])


if __name__ == "__main__":
    main()
