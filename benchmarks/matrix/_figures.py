"""The figures of the matrix. Colour: order of prediction. Filled marks: continuous tokens; hollow: discrete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from arvid.benchmarks.matrix._values import Cell, Curves, Metric
from arvid.experiments.scaling import PowerLaw
from arvid.report.numbers import three_digits
from arvid.report.panels import DASHED, TRAINED, legend_below, write_figure
from arvid.report.plots import plain_ticks

Draw = Callable[[Axes], None]
FILL: dict[str, Literal["full", "none"]] = {"continuous": "full", "discrete": "none"}
LINES = {"continuous": "solid", "discrete": (0, (2, 1.5))}
OFFSET = {"continuous": 0.13, "discrete": -0.13}
REFERENCES = {"first frame repeated": "repeated frame", "untrained": "untrained"}
"""Beginning of a reference row's name -> its label in figures. Tokenizers have the type's fill."""
NOTES_SHARE = 0.09
"""Height of a note about a reference row, as a share of its panel."""
COSTS = {
    "training FLOPs": "training FLOPs",
    "seconds per clip": "seconds per clip",
    "evaluations": "network evaluations per clip",
}
"""Costs that are drawn -> label of the axis."""
FRONT = "#b9bfc4"
INTERVAL = Line2D([], [], color="#22303c", lw=1.2, marker="|", label="95 % interval")
"""The legend's entry of an error bar."""
SOURCES = {"order": "#0072B2", "token type": "#D55E00", "interaction": "#009E73", "seed": "#8a8a8a"}


def order_colours(orders: Sequence[str]) -> dict[str, str]:
    """The colour of each order."""
    return {order: TRAINED[i % len(TRAINED)] for i, order in enumerate(orders)}


def cell_style(order: str, kind: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """Style and label of the line of an order and token type."""
    return {
        "color": colours[order],
        "ls": LINES[kind],
        "marker": "o",
        "ms": 3.5,
        "fillstyle": FILL[kind],
        "label": f"{order}, {kind}",
    }


def draw_matrix(path: Path, metrics: Sequence[Metric], orders: Sequence[str]) -> None:
    """One panel per metric: orders from top to bottom, both token types with standard errors, reference rows."""
    draws = [
        partial(_matrix_panel, metric=metric, orders=orders, legend=i == 0)
        for i, metric in enumerate(metrics)
    ]
    write_figure(path, draws, columns=2, size=(5.4, 1.1 + 0.42 * len(orders)))


def _matrix_panel(axis: Axes, metric: Metric, orders: Sequence[str], *, legend: bool) -> None:
    colours = order_colours(orders)
    for (order, kind), _ in metric.cells.items():
        axis.errorbar(
            metric.mean((order, kind)),
            len(orders) - 1 - orders.index(order) + OFFSET[kind],
            xerr=1.96 * metric.standard_error((order, kind)),
            fmt="o",
            ms=6,
            color=colours[order],
            fillstyle=FILL[kind],
            capsize=2,
            lw=1.2,
        )
    num_notes = _add_references(axis, metric)
    axis.set_yticks(range(len(orders)), list(reversed(orders)))
    top, lowest = len(orders) - 0.4, min(OFFSET.values())
    share = NOTES_SHARE * (num_notes + 1)  # of the height, below the lowest mark
    axis.set_ylim(min(-0.6, (lowest - share * top) / (1 - share)), top)
    axis.set_title(f"{metric.title}\n{metric.protocol}", pad=16)
    if legend:
        legend_below(axis, [*_fills(), INTERVAL])


def _add_references(axis: Axes, metric: Metric) -> int:
    """Draw the reference rows as lines. A row far outside the trained rows' range is a note with an arrow below.

    Returns the number of notes. They are stacked.
    """
    ends = [
        metric.mean(cell) + side * 1.96 * metric.standard_error(cell)
        for cell in metric.cells
        for side in (-1, 1)
    ]
    margin = 0.35 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin
    axis.set_xlim(low, high)
    outside = 0
    for name, value in metric.references.items():
        label = next((text for start, text in REFERENCES.items() if name.startswith(start)), None)
        if label is None:
            continue
        style: dict[str, Any] = {"fontsize": 7.5, "color": "#66727d", "textcoords": "offset points"}
        if low <= value <= high:
            axis.axvline(value, color="#8a8a8a", ls=DASHED, lw=1)
            style |= {"xycoords": ("data", "axes fraction"), "xytext": (2, 3)}
            axis.annotate(label, (value, 1), **style)
            continue
        text = f"{label} {three_digits(value)}"
        left = value < low
        text = f"\u2190 {text}" if left else f"{text} \u2192"
        style |= {"xycoords": "axes fraction", "xytext": (2 if left else -2, 3 + 9 * outside)}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides a line
        axis.annotate(text, (0 if left else 1, 0), ha="left" if left else "right", **style)
        outside += 1
    return outside


def _fills() -> list[Line2D]:
    return [
        Line2D([], [], marker="o", ls="", color="#22303c", fillstyle=fill, label=f"{kind} tokens")
        for kind, fill in FILL.items()
    ]


def draw_effects(path: Path, metrics: Sequence[Metric]) -> None:
    """Share of the variance by source for each metric, with 95 % intervals."""
    write_figure(path, [partial(_effects_panel, metrics=metrics)], size=(7.6, 3.6))


def _effects_panel(axis: Axes, metrics: Sequence[Metric]) -> None:
    analysed = [(metric, metric.effects) for metric in metrics]
    sources = [name for name in SOURCES if any(name in e.shares for _, e in analysed if e)]
    for i, name in enumerate(sources):
        for j, (_, effects) in enumerate(analysed):
            if effects is None:
                continue
            share = effects.shares[name]
            ends = [
                [share.value - min(share.low, share.value)],
                [max(share.high, share.value) - share.value],
            ]
            axis.bar(
                j + (i - (len(sources) - 1) / 2) * 0.2,
                100 * share.value,
                0.18,
                yerr=100 * np.array(ends),
                color=SOURCES[name],
                label=name if j == 0 else None,
                capsize=2,
                error_kw={"lw": 1, "ecolor": "#22303c"},
            )
    axis.set_xticks(range(len(metrics)), [_two_lines(metric) for metric in metrics])
    axis.set(
        ylabel="share of the variance (%)",
        title="What the quality is due to (bars: 95 % intervals)",
        ylim=(0, 105),
    )
    axis.grid(visible=False, axis="x")
    legend_below(axis)


def _two_lines(metric: Metric) -> str:
    return f"{metric.label}\n{metric.protocol}"


def draw_costs(
    path: Path,
    metric: Metric,
    costs: Mapping[str, Mapping[Cell, float]],
    orders: Sequence[str],
) -> None:
    """A metric against the costs, with the Pareto front: no other row is both better and cheaper."""
    found = [name for name in COSTS if name in costs]
    draws = [
        partial(
            _cost_panel,
            metric=metric,
            costs=costs[name],
            label=COSTS[name],
            orders=orders,
            legend=name == found[0],
        )
        for name in found
    ]
    write_figure(path, draws, size=(3.9, 3.4))


def _cost_panel(
    axis: Axes,
    metric: Metric,
    costs: Mapping[Cell, float],
    label: str,
    orders: Sequence[str],
    *,
    legend: bool,
) -> None:
    colours = order_colours(orders)
    for cell, cost in costs.items():
        order, kind = cell
        axis.errorbar(
            cost,
            metric.mean(cell),
            yerr=1.96 * metric.standard_error(cell),
            fmt="o",
            ms=6,
            color=colours[order],
            fillstyle=FILL[kind],
            capsize=2,
            lw=1.2,
        )
    front = pareto_front({cell: (cost, metric.mean(cell)) for cell, cost in costs.items()}, metric)
    points = [(costs[cell], metric.mean(cell)) for cell in front]
    axis.plot(*zip(*points, strict=True), color=FRONT, lw=1.2, zorder=0, drawstyle="steps-post")
    axis.set(xlabel=label, ylabel=metric.title, xscale="log")
    plain_ticks(axis.xaxis)
    axis.margins(x=0.1, y=0.12)
    if legend:
        named = [Line2D([], [], color=colours[order], lw=3, label=order) for order in orders]
        front_line = Line2D([], [], color=FRONT, lw=1.2, label="Pareto front")
        legend_below(axis, [*named, *_fills(), INTERVAL, front_line])


def pareto_front(points: Mapping[Cell, tuple[float, float]], metric: Metric) -> list[Cell]:
    """The cells that no other cell beats in both cost and quality, from the cheapest on."""
    sign = 1 if metric.higher_is_better else -1
    front: list[Cell] = []
    for cell in sorted(points, key=lambda c: (points[c][0], -sign * points[c][1])):
        if not front or sign * points[cell][1] > sign * points[front[-1]][1]:
            front.append(cell)
    return front


def draw_drift(path: Path, curves: Mapping[str, Curves], orders: Sequence[str]) -> None:
    """A metric at each frame: one panel per curve title."""
    draws = [
        partial(_drift_panel, title=title, curves=found, orders=orders, legend=i == 0)
        for i, (title, found) in enumerate(curves.items())
    ]
    write_figure(path, draws, columns=min(len(draws), 2), size=(5.2, 3.8))


def _drift_panel(
    axis: Axes, title: str, curves: Curves, orders: Sequence[str], *, legend: bool
) -> None:
    draw_curves(axis, curves, orders, first=0)
    several = any(len(values) > 1 for values in curves.values())
    bands = " (bands: ± standard error over seeds)" if several else ""
    axis.set(xlabel=f"frame{bands}", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend:
        legend_below(axis)


def draw_curves(axis: Axes, curves: Curves, orders: Sequence[str], *, first: int) -> None:
    """The mean over seeds at each step, with a band of one standard error; `first` is the number of the first step."""
    colours = order_colours(orders)
    for (order, kind), values in curves.items():
        steps, mean = first + np.arange(values.shape[1]), values.mean(0)
        axis.plot(steps, mean, **cell_style(order, kind, colours))
        if len(values) > 1:
            error = values.std(0, ddof=1) / len(values) ** 0.5
            axis.fill_between(
                steps, mean - error, mean + error, color=colours[order], alpha=0.12, lw=0
            )


def draw_scaling(
    path: Path,
    title: str,
    points: Mapping[Cell, Mapping[float, Sequence[float]]],
    laws: Mapping[Cell, PowerLaw],
    orders: Sequence[str],
) -> None:
    """A value against training FLOPs for every cell, with the fitted power laws: one panel per token type."""
    kinds = list(dict.fromkeys(kind for _, kind in points))
    draws = [
        partial(_scaling_panel, title=title, points=points, laws=laws, kind=kind, orders=orders)
        for kind in kinds
    ]
    write_figure(path, draws, size=(5.4, 4.0))


def _scaling_panel(
    axis: Axes,
    title: str,
    points: Mapping[Cell, Mapping[float, Sequence[float]]],
    laws: Mapping[Cell, PowerLaw],
    kind: str,
    orders: Sequence[str],
) -> None:
    colours = order_colours(orders)
    for (order, of), found in points.items():
        if of != kind:
            continue
        law, colour = laws[order, kind], colours[order]
        x = [flops for flops, values in found.items() for _ in values]
        axis.plot(x, [v for values in found.values() for v in values], "o", ms=5, color=colour)
        ends = np.array([min(x), max(x)])
        label = f"{order}: exponent {law.exponent.value:.2f} ({law.exponent.low:.2f} to {law.exponent.high:.2f})"
        axis.plot(ends, [law.at(end) for end in ends], color=colour, label=label)
    axis.set(xlabel="training FLOPs", ylabel=title, xscale="log", yscale="log")
    axis.set_title(f"{kind} tokens")
    plain_ticks(axis.xaxis)
    plain_ticks(axis.yaxis)
    axis.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
