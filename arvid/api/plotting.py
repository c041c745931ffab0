"""The figures of a comparison, which a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from arvid.api.model import Source
from arvid.api.scoring import comparison
from arvid.files import atomic_write
from arvid.report.panels import Plot, colours
from arvid.report.plots import all_plots


@dataclass(frozen=True)
class Plots(Sequence[Plot]):
    """Figures with title, caption and SVG panels."""

    plots: tuple[Plot, ...]
    palette: dict[str, str]
    """Colour of each row, by name."""

    @overload
    def __getitem__(self, index: int) -> Plot: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Plot, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.plots[index]

    def __len__(self) -> int:
        return len(self.plots)

    def save(self, folder: str | Path) -> list[Path]:
        """Write each panel as an SVG file, named after the figure; returns the paths."""
        written = []
        for plot in self.plots:
            stem = "-".join(plot.title.lower().split())
            for i, panel in enumerate(plot.panels, 1):
                path = Path(folder) / f"{stem}-{i}.svg"
                with atomic_write(path) as temporary:
                    temporary.write_text(_file(panel), encoding="utf-8")
                written.append(path)
        return written

    def __repr__(self) -> str:
        return f"Plots({', '.join(plot.title for plot in self.plots) or 'none'})"

    def _repr_html_(self) -> str:
        return "".join(self._figure(plot) for plot in self.plots)

    def _figure(self, plot: Plot) -> str:
        panels = "".join(
            f'<div style="width:420px;background:white">{panel}</div>' for panel in plot.panels
        )
        names = [
            f'<span style="color:{self.palette[row.name]}">■</span> {html.escape(row.name)} '
            for row in plot.rows
        ]
        return (
            f'<figure style="margin:0"><b>{html.escape(plot.title)}</b>'
            f'<div style="display:flex;flex-wrap:wrap">{panels}</div>{"".join(names)}'
            f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
        )


def plot(runs: Source | Sequence[Source], *, allow_different_settings: bool = False) -> Plots:
    """The figures for which the records of the runs have data: training curves, quality against speed and others.

    `runs` are models or run folders, as in `compare`. Raises UserError as `compare` does.
    """
    found = comparison(runs, allow_different_settings)
    return Plots(tuple(all_plots(found)), colours(found.rows))


def _file(panel: str) -> str:
    """An SVG element as a file."""
    return (
        panel
        if "xmlns=" in panel
        else panel.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    )
