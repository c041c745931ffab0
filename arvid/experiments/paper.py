"""Shared by benchmark scripts: the command line, and a page with published and measured values, also as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from arvid.evaluation.records import ResultRecord, code_version
from arvid.experiments.printed import show_page
from arvid.experiments.variants import Speed
from arvid.files import atomic_write, write_json
from arvid.hardware import hardware
from arvid.terminal import console

Cell = str | float | None
"""Content of a table cell. None is blank; numbers are shown with four digits."""


SPEED_HEADINGS = ("steps", "frames / s, tokens alone", "frames / s ↑", "frames / s, in batches")
"""Headings of `speed_cells`. The speeds: one clip without decoding, one clip with decoding, the scored batches."""
Curve = Sequence[Mapping[str, float | None]]
_STYLES: dict[str, dict[str, Any]] = {
    "train_loss": {"lw": 0.8, "alpha": 0.4},
    "val_loss": {"marker": "o", "ms": 3},
}


def script_parser(
    description: str | None, out: str, scales: Iterable[str] = (), epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser with --out, and with --scale (default: demo) for a script with scales."""
    script = Path(sys.argv[0])
    parser = argparse.ArgumentParser(
        prog=f"arvid bench {script.parent.name}/{script.stem}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    if scales:
        parser.add_argument("--scale", choices=tuple(scales), default="demo")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder to write to ({out})")
    return parser


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Lines of a Markdown table; the first column is text. Raises ValueError for a row of the wrong length."""
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)]]
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row of {len(row)} cells under {len(headings)} headings: {row}")
        lines.append([_text(cell) for cell in row])
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else f"{cell:.4g}"


def headings(records: Sequence[ResultRecord], known: Mapping[str, str]) -> dict[str, str]:
    """Metric name -> heading: first those of the paper (`known`, measured or not), then others in the records."""
    arrows = {True: " ↑", False: " ↓", None: ""}
    found = {m.name: m.heading + arrows[m.higher_is_better] for r in records for m in r.metrics}
    return {**known, **{name: h for name, h in found.items() if name not in known}}


def metric_cells(record: ResultRecord | None, names: Sequence[str]) -> list[Cell]:
    """A record's values of the named metrics; blank if missing."""
    values = {m.name: m.value for m in record.metrics} if record else {}
    return [values.get(name) for name in names]


def speed_cells(record: ResultRecord, speeds: Mapping[str, Speed]) -> list[Cell]:
    """Number of steps and speeds of a row; blank for rows that generate nothing."""
    found = speeds.get(record.name)
    if found is None:
        return [None] * len(SPEED_HEADINGS)
    alone = found.frames / found.seconds
    return [
        str(found.steps),
        alone,
        found.frames_per_second,
        record.budget.frames_per_second,
    ]


def row_name(record: ResultRecord) -> str:
    """Name of a row in Markdown; reference rows are in italics."""
    return f"*{record.name}*" if record.row == "reference" else record.name


def draw_losses(axis: Axes, curves: Mapping[str, Curve], colours: Mapping[str, str]) -> None:
    """Validation losses (dots) and training losses (thin) by name, as `read_curve` gives them; without a legend."""
    for name, curve in curves.items():
        for key, style in _STYLES.items():
            points = [(p["step"], p[key]) for p in curve if p.get(key) is not None]
            if points:
                label = name if key == "val_loss" else None
                axis.plot(*zip(*points, strict=True), color=colours[name], label=label, **style)
    axis.set(
        xlabel="training step (dots: validation, thin: training)", ylabel="loss (nats per token)"
    )


def validation_losses(curve: Curve) -> list[float]:
    """Validation losses of a training curve, in order."""
    return [loss for point in curve if (loss := point.get("val_loss")) is not None]


def plain_records(records: Sequence[ResultRecord]) -> list[dict[str, Any]]:
    """Records for OUT/results.json, which may be moved elsewhere than their folders."""
    return [dataclasses.asdict(record) | {"folder": None} for record in records]


def write_page(
    out: Path, title: str, lines: Sequence[str], notes: Sequence[str], results: dict[str, Any]
) -> None:
    """Write OUT/table.md and OUT/results.json, and print the page: aligned for a terminal, as Markdown otherwise.

    `notes` come before the tables.
    """
    version, machine = code_version(), hardware()
    quoted = [part for note in notes for part in (f"> {note}", "")]
    page = "\n".join([f"# {title}", "", f"arvid {version}, {machine}.", "", *quoted, *lines, ""])
    write_json(
        out / "results.json",
        {**results, "notes": list(notes), "code_version": version, "hardware": machine},
    )
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    if sys.stdout.isatty():
        show_page(page, console())
        print(f"Wrote {out / 'table.md'} and results.json beside it.")
    else:
        print(page)
