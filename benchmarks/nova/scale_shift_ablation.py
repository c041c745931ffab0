"""Rank of NOVA's scaling-and-shift layer (arXiv 2412.14169, section 4.4, figures 8a and 9).

Trains NOVA without the layer, with low ranks, with the paper's 24 and at full rank, under one setting. Compares the
losses of first frames (text to image) and later frames (image to video). The paper reports: the layer reduces their
difference, lower ranks are harder to train but more robust, and very low ranks cannot express motion. Also scores
generated clips.

example:
  arvid bench nova/scale_shift_ablation --rank 8 --rank 24

Writes table.md, results.json, index.html, figure8a.png (losses over training, and at its end over the rank) and
figure9.png (for each caption one row per rank, from no layer to full rank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from arvid.benchmarks.nova import _common as nova
from arvid.evaluation.curves import read_curve
from arvid.evaluation.records import ResultRecord
from arvid.experiments.paper import (
    Cell,
    headings,
    metric_cells,
    plain_records,
    row_name,
    table,
    write_page,
)
from arvid.experiments.variants import folders, score, train
from arvid.ranges import at_least
from arvid.report import tables
from arvid.report.page import write_report
from arvid.report.panels import colours, legend_under, write_figure

RANKS = (8, 24)
PARTS = {"image": "first frames", "video": "later frames"}
"""The losses of `NOVA.loss`."""
NOTES = (
    "Published: figures 8a and 9 show curves and pictures; their values and ranks are not given in words or tables, "
    "but for the rank of 24 in all text-to-video models. Losses are the last validation's; drift is that of later "
    "frames less that of first ones.",
)

Losses = dict[str, dict[str, list[dict[str, float | None]]]]
"""Row -> part -> points of the training curve."""


def main() -> None:
    """Train, score, draw, write."""
    parser = nova.parser(__doc__ or "", "runs/nova-scale-shift")
    parser.add_argument(
        "--rank",
        type=at_least(1).integer,
        action="append",
        help="beside off and full; may be repeated (8, 24)",
    )
    options = nova.read_arguments(parser)
    ranks: list[int | str] = ["off", *sorted(options.rank or RANKS), "full"]
    rows = [nova.variant(f"rank-{rank}", options, scale_shift=rank) for rank in ranks]
    train(rows, options.out, nova.shared_options(options))
    protocol, notes = nova.protocol(options)
    records = score(rows, [protocol], options.out)
    title = "NOVA's scaling-and-shift layer"
    comparison = write_report(folders(records), options.out, title=title)
    losses = {
        row.name: {part: list(read_curve(options.out / row.name, part)) for part in PARTS}
        for row in rows
    }
    draw(options.out / "figure8a", losses, colours(comparison.rows))
    trained = [record for record in records if record.row == "trained"]
    nova.write_clips(options.out / "figure9.png", trained)
    lines = [*our_table(records, losses), "", tables.markdown(comparison)]
    results = {
        "scale": options.scale,
        "losses": losses,
        "records": plain_records(records),
    }
    heading = "NOVA: the scaling-and-shift layer"
    write_page(options.out, heading, lines, [*NOTES, *notes], results)


def last(losses: Mapping[str, Sequence[Mapping[str, float | None]]], part: str) -> float | None:
    """A part's last validation loss."""
    values = [value for point in losses[part] if (value := point.get("val_loss")) is not None]
    return values[-1] if values else None


def our_table(records: Sequence[ResultRecord], losses: Losses) -> list[str]:
    """One line per row."""
    metrics = headings(records, {})
    lines: list[list[Cell]] = []
    for record in records:
        found = losses.get(record.name)
        image, video = (last(found, part) if found else None for part in PARTS)
        drift = None if image is None or video is None else video - image
        lines.append([row_name(record), image, video, drift, *metric_cells(record, list(metrics))])
    titles = ("", *(f"loss, {title} ↓" for title in PARTS.values()), "drift ↓")
    return table((*titles, *metrics.values()), lines)


def draw(path: Path, losses: Losses, palette: Mapping[str, str]) -> None:
    """Validation losses over training by part, and the last ones by rank."""

    def curves(axis: Axes, part: str) -> None:
        for name, found in losses.items():
            points = [(p["step"], p["val_loss"]) for p in found[part] if "val_loss" in p]
            axis.plot(*zip(*points, strict=True), "o-", ms=3, color=palette[name], label=name)
        axis.set(xlabel="training step", ylabel="validation loss", title=PARTS[part].capitalize())
        legend_under(axis)

    def ends(axis: Axes) -> None:
        for part, title in PARTS.items():
            ended = [
                (name, value) for name, found in losses.items() if (value := last(found, part))
            ]
            axis.plot(*zip(*ended, strict=True), "o-", label=title)
        axis.set(ylabel="last validation loss", title="By rank")
        legend_under(axis)

    write_figure(path, [*(partial(curves, part=part) for part in PARTS), ends])


if __name__ == "__main__":
    main()
