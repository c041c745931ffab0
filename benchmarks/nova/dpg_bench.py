"""DPG-Bench by category (arXiv 2412.14169, appendix F, table 3): published rows beside ours.

Rows are folders with a record of `arvid evaluate dpg-bench aggregate`. `arvid bench nova/text_to_image` makes them at
the scales lab and paper, one per checkpoint. Without rows only the published table is printed. There are none at the
scale demo, since the judge does not know sprites.

example:
  arvid bench nova/dpg_bench --row w768=runs/nova-text-to-image/w768 --row w1024=runs/nova-text-to-image/w1024

Writes table.md, results.json and dpg.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from arvid.benchmarks.nova import _common as nova
from arvid.contracts import UserError
from arvid.evaluation.records import EVALUATION_FOLDER, load
from arvid.experiments.paper import script_parser, write_page
from arvid.experiments.variants import named_paths
from arvid.report.panels import legend_below, write_figure

COLUMNS = {
    "dpg": "overall",
    **{f"dpg-l1-{c}": c for c in ("global", "entity", "attribute", "relation", "other")},
}
"""Metrics of our records and the paper's headings."""
PUBLISHED = Path(__file__).with_name("dpg_bench.csv")
NOTES = (
    "DPG-Bench as ELLA's code computes it. Categories are means over the answers for each image's last tile, before "
    "questions are gated by those that they depend on.",
)


def main() -> None:
    """Read, write."""
    options = parse_arguments()
    ours = {name: scores(row) for name, row in named_paths(options.row).items()}
    published = nova.read_published(PUBLISHED)
    draw(options.out / "dpg", published, ours)
    rows = {n: {k: f"{v:.2f}" for k, v in found.items()} for n, found in ours.items()}
    lines = nova.published_table(PUBLISHED, COLUMNS, rows)
    results = {"published": published, "ours": ours}
    write_page(options.out, "NOVA: DPG-Bench by category", lines, NOTES, results)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/nova-dpg-bench")
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="with a record of DPG-Bench; may be repeated",
    )
    return parser.parse_args()


def scores(row: Path) -> dict[str, float]:
    """The values of a row's record by metric. Raises UserError if there is none."""
    path = row / EVALUATION_FOLDER / "dpg-bench.json"
    if not path.is_file():
        raise UserError(
            f"{row} has no record of DPG-Bench: make one with `arvid evaluate dpg-bench`."
        )
    return {metric.name: metric.value for metric in load(path).metrics}


def draw(
    path: Path, published: Sequence[Mapping[str, str]], ours: Mapping[str, Mapping[str, float]]
) -> None:
    """NOVA's categories, ours filled."""

    def panel(axis: Axes) -> None:
        places = range(len(COLUMNS))
        for row in published:
            if row["model"].startswith("NOVA"):
                values = [float(row[key]) for key in COLUMNS]
                axis.plot(places, values, "o--", mfc="none", label=f"{row['model']}, published")
        for name, found in ours.items():
            axis.plot(places, [found.get(key, math.nan) for key in COLUMNS], "o-", label=name)
        axis.set_xticks(list(places), list(COLUMNS.values()))
        legend_below(axis)
        axis.set(ylabel="DPG-Bench", title="By category")

    write_figure(path, [panel])


if __name__ == "__main__":
    main()
