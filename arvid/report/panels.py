"""Common parts of the plots: style, the colour of each row, panels as SVG.

A row has the same colour in all plots (palettes for colour-blind readers; greys and a brown for reference rows).
Equal records give equal bytes.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arvid.files import atomic_write
from arvid.report.cells import Row

TRAINED = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),  # Okabe and Ito
    *("#7A5195", "#8C564B", "#117733", "#882255", "#999933", "#44AA99"),  # and Tol's muted colours
)
_REFERENCE = ("#4d4d4d", "#8a8a8a", "#6b6b6b", "#a8a8a8", "#8f7a5f")
_INK, _QUIET, _RULE = "#22303c", "#66727d", "#e3e0d9"
DASHED = (0, (4, 3))
"""Line style of reference rows."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#b9bfc4",
    "axes.labelcolor": _QUIET,
    "axes.titlesize": 10.5,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the page: panels side by side, and the rows they show."""

    title: str
    caption: str
    panels: tuple[str, ...]
    """SVG elements."""
    rows: tuple[Row, ...] = ()
    """Rows for the legend; empty if the panels name their rows."""


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """The colour of each row, by name."""
    found = {}
    for palette, reference in ((_REFERENCE, True), (TRAINED, False)):
        names = [row.name for row in rows if row.is_reference == reference]
        found.update({name: palette[i % len(palette)] for i, name in enumerate(names)})
    return found


def panel(
    name: str,
    draw: Callable[[Axes], None],
    *,
    label: str,
    size: tuple[float, float] = (4.4, 3.2),
) -> str:
    """One panel as an `<svg>` element without a fixed size; `size` in inches sets its proportions.

    `label` says what it shows, for screen readers.
    """
    # Ids must differ between panels of a page but not between runs: the hash of the drawing is the salt.
    first = _render(name, draw, label, size)
    return _render(name + hashlib.sha256(first.encode()).hexdigest(), draw, label, size)


def write_figure(
    path: Path,
    draws: Sequence[Callable[[Axes], None]],
    *,
    columns: int | None = None,
    size: tuple[float, float] = (4.8, 3.6),
) -> None:
    """Write panels of `size` inches, in rows of `columns` panels (None: one row).

    PATH.png, PATH.svg and PATH.pdf hold the figure, PATH-slide.png enlarges it for a slide of 1920 by 1080 pixels, and
    PATH-column.pdf has the panels below each other in the width of a column of a paper.
    """
    columns = columns or len(draws)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": path.name}):  # equal drawings, equal files
        figure = _figure(draws, columns, size)
        width, height = figure.get_size_inches()
        enlarged = min(SLIDE[0] / width, SLIDE[1] / height)
        for ending, dpi in (
            (".png", 160.0),
            (".svg", 160.0),
            (".pdf", 160.0),
            ("-slide.png", enlarged),
        ):
            _save(figure, path.with_name(path.name + ending), dpi)
    with mpl.rc_context({**_STYLE, **_COLUMN_STYLE}):
        small = (COLUMN, COLUMN * size[1] / size[0])
        _save(_figure(draws, 1, small), path.with_name(f"{path.name}-column.pdf"), 160.0)


SLIDE = (1920, 1080)
"""Pixels of a slide."""
COLUMN = 3.35
"""Width in inches of a column of a paper in two columns."""
_COLUMN_STYLE: dict[Any, Any] = {"font.size": 7.5, "axes.titlesize": 8, "lines.linewidth": 1.3}
_DATES: dict[str, dict[str, None] | None] = {
    ".png": None,
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Metadata by ending: without dates, so that equal drawings give equal files."""


def legend_below(axis: Axes, handles: Sequence[Line2D] = ()) -> None:
    """One legend below all panels of the figure, off the data: of `handles`, or of the axis' own artists."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    own, labels = axis.get_legend_handles_labels()
    if handles:
        own, labels = list(handles), [str(handle.get_label()) for handle in handles]
    inches = 0.7 + 0.075 * max(map(len, labels), default=0)  # of an entry: its line and its letters
    figure.legend(
        own,
        labels,
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() / inches)),
        frameon=False,
        fontsize="small",
    )


def legend_under(axis: Axes) -> None:
    """A legend of this panel alone, below its x axis."""
    axis.legend(
        frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2
    )


def _figure(
    draws: Sequence[Callable[[Axes], None]], columns: int, size: tuple[float, float]
) -> Figure:
    rows = -(-len(draws) // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, draw in zip(axes, draws, strict=False):
        axis.tick_params(length=0)
        draw(axis)
    for axis in axes[len(draws) :]:
        axis.remove()
    return figure


def _save(figure: Figure, path: Path, dpi: float) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi, metadata=_DATES[path.suffix])


def _render(salt: str, draw: Callable[[Axes], None], label: str, size: tuple[float, float]) -> str:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        axis = figure.subplots()
        figure.patch.set_alpha(0)
        axis.patch.set_alpha(0)
        axis.tick_params(length=0)
        draw(axis)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    # matplotlib's metadata and fixed size would make the output depend on its version and prevent scaling
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{html.escape(label)}">{_themed(rest)}'


def themed(colour: str) -> str:
    """A colour as a CSS variable, which the page's dark theme changes, with the colour itself as its default."""
    name = f"--c-{colour.removeprefix('#').lower()}"
    return f"var({name}, {colour})"


def _themed(svg: str) -> str:
    return re.sub(r"#[0-9a-fA-F]{6}(?=[;\"'])", lambda found: themed(found[0]), svg)
