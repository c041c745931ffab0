"""The plots of a comparison as SVG: training curves, losses by latent frame, quality against speed and per frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from arvid.evaluation.curves import FRAME_LOSS
from arvid.report.cells import Column, Row
from arvid.report.comparison import Comparison
from arvid.report.numbers import short
from arvid.report.panels import DASHED, Plot, colours, panel
from arvid.report.rollout import rollouts

LONGEST_NAME = 34
"""Letters of a name beside a point or line; longer names are cut."""
MAX_TICKS = 6
"""Of a logarithmic axis of less than a power of ten."""
MAX_NAMED = 6
"""With more trained rows a plot has a legend instead of names beside the points."""


def all_plots(comparison: Comparison) -> list[Plot]:
    """The plots for which the records have data."""
    makers = (
        quality_against_speed,
        training_curves,
        loss_by_latent_frame,
        rollouts,
        quality_per_frame,
    )
    return [plot for maker in makers if (plot := maker(comparison)) is not None]


def training_curves(comparison: Comparison) -> Plot | None:
    """Loss over steps, one panel per token type: losses of different types have different units."""
    palette = colours(comparison.rows)

    def draw(axis: Axes, token_type: str, rows: Sequence[Row]) -> None:
        for row in rows:
            _draw_curve(axis, row, palette[row.name])
        axis.set(xlabel="training step", ylabel="loss", title=f"{token_type} tokens".strip())

    return _by_token_type(
        [row for row in comparison.rows if _curve(row)],
        draw,
        title="Training curves",
        caption="Validation loss (dots) and training loss (thin).",
    )


def loss_by_latent_frame(comparison: Comparison) -> Plot | None:
    """The last validation's loss of each latent frame, one panel per token type."""
    palette = colours(comparison.rows)

    def draw(axis: Axes, token_type: str, rows: Sequence[Row]) -> None:
        for row in rows:
            axis.plot(
                *zip(*_frame_losses(row), strict=True), color=palette[row.name], marker="o", ms=3
            )
        axis.set(xlabel="latent frame", ylabel="loss", title=f"{token_type} tokens".strip())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _by_token_type(
        [row for row in comparison.rows if _frame_losses(row)],
        draw,
        title="Loss by latent frame",
        caption="Mean validation loss of the predicted tokens of each latent frame, at the end of the training.",
    )


def quality_against_speed(comparison: Comparison) -> Plot | None:
    """The first metric against frames per second under the same protocol. Rows without a speed are lines."""
    pair = _quality_and_speed(comparison)
    if pair is None:
        return None
    quality, speed = pair
    trained = [row for row in comparison.rows if not row.is_reference]
    named = len(trained) <= MAX_NAMED

    def draw(axis: Axes) -> None:
        for row in comparison.rows:
            if row.cell(speed).value:
                _draw_point(axis, comparison, row, quality, speed, named=named or row.is_reference)
        axis.set(xlabel="frames generated per second", ylabel=quality.heading, xscale="log")
        plain_ticks(axis.xaxis)
        values = [v for row in comparison.rows if (v := row.cell(quality).value) is not None]
        if min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
            plain_ticks(axis.yaxis)
        axis.margins(x=0.25, y=0.12)
        if levels_named := [row for row in comparison.rows if not row.cell(speed).value]:
            low, high = axis.get_xlim()
            axis.set_xlim(low, high * (high / low) ** 0.6)  # points end before the names of lines
        palette = colours(comparison.rows)
        levels = [
            (y, r.name, palette[r.name]) for r in levels_named if (y := r.cell(quality).value)
        ]
        for y, _, colour in levels:
            axis.axhline(y, color=colour, lw=1, ls=DASHED)
        label_levels(axis, levels)
        spread_labels(axis)

    better = "upper" if quality.higher_is_better else "lower"
    return Plot(
        title="Quality against speed",
        caption=f"{quality.label} against speed under {quality.group}; further to the {better} right "
        "is better. Dashed: reference rows that generate nothing.",
        panels=(
            panel(
                "speed", draw, label=f"{quality.label} against frames per second", size=(5.4, 3.5)
            ),
        ),
        rows=() if named else tuple(trained),
    )


def quality_per_frame(comparison: Comparison) -> Plot | None:
    """Metrics at each frame, one panel per metric and protocol, unless there is a rollout curve."""
    panels: dict[str, dict[str, Sequence[float | None]]] = {}
    for heading, found in comparison.protocols.items():
        for row, record in found:
            for metric, values in record.steps_curve.items():
                if metric not in record.rollout:
                    title = comparison.metric_title(heading, metric)
                    panels.setdefault(title, {})[row.name] = values
    if not panels:
        return None

    def draw(axis: Axes, title: str, lines: Mapping[str, Sequence[float | None]]) -> None:
        _draw_frames(axis, comparison, lines)
        axis.set(xlabel="frame", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    shown = {name for lines in panels.values() for name in lines}
    return Plot(
        title="Quality per frame",
        caption="Mean over clips at each frame, from the first frame (0) on.",
        panels=tuple(
            panel("frames", partial(draw, title=k, lines=v), label=f"{k} at each frame")
            for k, v in panels.items()
        ),
        rows=tuple(row for row in comparison.rows if row.name in shown),
    )


def _by_token_type(
    rows: Sequence[Row], draw: Callable[..., None], *, title: str, caption: str
) -> Plot | None:
    """A plot of losses with one panel per token type; None without rows. `draw` takes axis, token type and rows."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row.factors.get("token_type", ""), []).append(row)
    if not panels:
        return None
    return Plot(
        title=title,
        caption=f"{caption} Losses of different token types have different units: compare within a panel only.",
        panels=tuple(
            panel(title, partial(draw, token_type=k, rows=v), label=f"{title}, {k} tokens")
            for k, v in panels.items()
        ),
        rows=tuple(row for shown in panels.values() for row in shown),
    )


def _frame_losses(row: Row) -> list[tuple[int, float]]:
    """Latent frames and their losses at the last validation; empty for a row without."""
    for point in reversed(_curve(row)):
        losses = {
            k.removeprefix(FRAME_LOSS): v for k, v in point.items() if k.startswith(FRAME_LOSS)
        }
        found = sorted((int(k), v) for k, v in losses.items() if k.isdecimal() and v is not None)
        if found:
            return found
    return []


def _curve(row: Row) -> Sequence[Mapping[str, float | None]]:
    """Training curve of a row: every record of a run contains it."""
    return next((record.curve for record in row.records if record.curve), ())


def _draw_curve(axis: Axes, row: Row, colour: str) -> None:
    lines = {}
    for key in ("train_loss", "val_loss"):
        points = [(p.get("step"), p.get(key)) for p in _curve(row)]
        lines[key] = [(x, y) for x, y in points if x is not None and y is not None]
    thin, thick = lines["train_loss"], lines["val_loss"]
    if thin:
        axis.plot(*zip(*thin, strict=True), color=colour, lw=0.9, alpha=0.45)
    if thick:
        axis.plot(*zip(*thick, strict=True), color=colour, marker="o", ms=3)


def _quality_and_speed(comparison: Comparison) -> tuple[Column, Column] | None:
    """The first metric, with the speed of its protocol, for which at least one row has both."""
    speeds = {c.group: c for c in comparison.columns if c.key.endswith("/frames_per_second")}
    for quality in comparison.in_block("quality"):
        speed = speeds.get(quality.group)
        if speed and any(
            row.cell(quality).value is not None and row.cell(speed).value for row in comparison.rows
        ):
            return quality, speed
    return None


def _draw_point(
    axis: Axes, comparison: Comparison, row: Row, quality: Column, speed: Column, *, named: bool
) -> None:
    colour = colours(comparison.rows)[row.name]
    y, x = row.cell(quality).value, row.cell(speed).value
    if y is None or x is None:
        return
    face = "white" if row.is_reference else colour
    spread = row.cell(quality).spread
    axis.errorbar(x, y, yerr=spread, fmt="o", ms=6, color=colour, mfc=face, mew=1.4, capsize=3)
    if named:
        weight = "normal" if row.is_reference else "bold"
        axis.text(
            x, y, _short(row.name).replace(" (", "\n("), color=colour, weight=weight, fontsize=9
        )


def label_levels(axis: Axes, levels: Sequence[tuple[float, str, str]]) -> None:
    """Name horizontal lines (y, name, colour) to the right of the axes, with the names kept apart.

    Call it when the limits and the scale of the axis are final.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    axis.get_ylim()  # widens the limits for lines that were just drawn; `transData` alone does not
    gap = 1.3 * 9 / (axis.get_window_extent().height / figure.dpi * 72)  # a line of 9 points
    to_share = axis.transData + axis.transAxes.inverted()
    levels = sorted(levels)
    own = [float(to_share.transform((1, y))[1]) for y, _, _ in levels]
    for (y, name, colour), place in zip(levels, apart(own, gap), strict=True):
        axis.annotate(
            _short(name),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, up first, then down so that none is above 1."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = max(1.0, places[-1]) if places else 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def spread_labels(axis: Axes) -> None:
    """Move the labels of points apart. A line leads from a label that is far from its point."""
    levels = [text for text in axis.texts if isinstance(text, Annotation)]
    points = [text for text in axis.texts if text not in levels]
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout decides where the axes end
    adjust_text(
        points,
        objects=levels or None,
        ax=axis,
        ensure_inside_axes=False,  # the layout makes room for labels that reach out
        expand=(1.1, 1.3),
        force_static=(0.3, 0.6),
        iter_lim=300,  # the default is a time limit, so the picture would depend on the machine
        arrowprops={"arrowstyle": "-", "color": "#66727d", "lw": 0.6},
    )


def _draw_frames(
    axis: Axes, comparison: Comparison, lines: Mapping[str, Sequence[float | None]]
) -> None:
    palette = colours(comparison.rows)
    for row in comparison.rows:
        points = [(i, v) for i, v in enumerate(lines.get(row.name, ())) if v is not None]
        if points:
            style = DASHED if row.is_reference else "solid"
            axis.plot(*zip(*points, strict=True), color=palette[row.name], ls=style)


class _FewTicks(LogLocator):
    """Ticks at 1, 2 and 5 times powers of ten; on an axis of more than 2.5 powers of ten at these powers only.

    LogLocator has many ticks on an axis of less than a power of ten; every second one is left out then.
    """

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        self.set_params(subs=(1,) if vmax > 300 * vmin else (1, 2, 5))
        ticks = super().tick_values(vmin, vmax)
        if vmax > 10 * vmin:
            return ticks
        shown = [float(tick) for tick in ticks if vmin <= tick <= vmax]
        return shown if len(shown) <= MAX_TICKS else shown[::2]


def plain_ticks(axis: Axis) -> None:
    """Set few ticks on a logarithmic axis, as plain numbers or with an SI prefix."""
    axis.set_major_locator(_FewTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())
