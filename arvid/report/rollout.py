"""The plot of roll-outs: quality against the autoregressive step, with bands of one standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arvid.metrics.rollout import StepCurve
from arvid.report.plots import _REFERENCE, _TRAINED, Plot, _panel


def rollout_plot(
    panels: Mapping[str, Mapping[str, StepCurve]], references: Sequence[str] = ()
) -> Plot:
    """One panel for each metric, in which every line has the same colour.

    Args:
        panels: curves by metric ('PSNR (dB)') and line ('nova'), as `Rollout.compute` gives them.
        references: lines to be drawn dashed and grey, e.g. the reconstruction and the last given frame.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    palette: dict[str, str] = {}
    for colours, reference in ((_REFERENCE, True), (_TRAINED, False)):
        alike = [name for name in names if (name in references) == reference]
        palette.update({name: colours[i % len(colours)] for i, name in enumerate(alike)})

    def draw(axis: Axes, metric: str, curves: Mapping[str, StepCurve]) -> None:
        for name, curve in curves.items():
            _draw_line(axis, name, curve, palette[name], dashed=name in references)
        axis.set(xlabel="predicted latent frame", title=metric)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=8)

    return Plot(
        title="Quality against the autoregressive step",
        caption="How a prediction holds up as it is rolled out: mean over clips after the given frames, with one "
        "standard error. Dashed: lines that no model made.",
        panels=tuple(
            _panel("rollout", partial(draw, metric=k, curves=v)) for k, v in panels.items()
        ),
    )


def _draw_line(axis: Axes, name: str, curve: StepCurve, colour: str, *, dashed: bool) -> None:
    steps = range(1, len(curve.mean) + 1)
    style = (0, (4, 3)) if dashed else "solid"
    axis.plot(steps, curve.mean, color=colour, ls=style, marker="o", ms=3, label=name)
    if curve.standard_error is not None:
        pairs = list(zip(curve.mean, curve.standard_error, strict=True))
        low, high = [m - e for m, e in pairs], [m + e for m, e in pairs]
        axis.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
