"""The plot of rollouts, as in NOVA's appendix (arXiv:2412.14169, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arvid.metrics.rollout import StepCurve
from arvid.report.comparison import Comparison
from arvid.report.panels import DASHED, Plot, colours, panel


def rollouts(comparison: Comparison) -> Plot | None:
    """Quality against the autoregressive step, with bands of one standard error: one panel per metric and protocol."""
    panels: dict[str, dict[str, StepCurve]] = {}
    for heading, found in comparison.protocols.items():
        for row, record in found:
            for metric, curve in record.rollout.items():
                title = comparison.metric_title(heading, metric)
                panels.setdefault(title, {})[row.name] = curve
    if not panels:
        return None

    def draw(axis: Axes, title: str, lines: Mapping[str, StepCurve]) -> None:
        _draw_lines(axis, comparison, lines)
        axis.set(xlabel=_step(next(iter(lines.values()))), title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    shown = {name for lines in panels.values() for name in lines}
    return Plot(
        title="Quality against the autoregressive step",
        caption="Mean over clips at each step after the given frames, with one standard error (over seeds, if a row "
        "is a mean over seeds). Dashed: rows that were not trained, such as the last given frame repeated, and the "
        "reconstruction, which is the upper bound of any model on its tokens.",
        panels=tuple(
            panel("rollout", partial(draw, title=k, lines=v), label=f"{k} at each step")
            for k, v in panels.items()
        ),
        rows=tuple(row for row in comparison.rows if row.name in shown),
    )


def _draw_lines(axis: Axes, comparison: Comparison, lines: Mapping[str, StepCurve]) -> None:
    palette = colours(comparison.rows)
    for row in comparison.rows:
        curve = lines.get(row.name)
        if curve is None:
            continue
        steps, colour = range(1, len(curve.mean) + 1), palette[row.name]
        style = DASHED if row.is_reference else "solid"
        axis.plot(steps, curve.mean, color=colour, ls=style, marker="o", ms=3)
        if curve.standard_error is not None:
            pairs = list(zip(curve.mean, curve.standard_error, strict=True))
            low, high = [m - e for m, e in pairs], [m + e for m, e in pairs]
            axis.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)


def _step(curve: StepCurve) -> str:
    frames = curve.frames_per_step
    return "predicted frame" if frames == 1 else f"autoregressive step ({frames} frames each)"
