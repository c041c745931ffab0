"""Dependence of a Fréchet distance on the number of clips N, computed from stored features.

The distance has an upward bias of about C / N (arXiv:1911.07023), so values at different N cannot be compared. A line
in 1 / N through the values at several N extrapolates to infinitely many clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid.metrics.frechet import frechet_distance_from_features

_POINTS = 8
_MIN_POINTS = 3  # two points always lie on a line: the fit could not be checked


@dataclass(frozen=True, kw_only=True)
class SampleCountCurve:
    """The distance at several clip counts, and its extrapolation to infinitely many clips."""

    counts: tuple[int, ...]
    """Clips per set, ascending."""
    means: tuple[float, ...]
    """Mean distance over the subsets drawn at each count."""
    deviations: tuple[float | None, ...]
    """Standard deviation over these subsets; None for a single subset."""
    limit: float | None
    """Distance extrapolated to 1 / N = 0. Only counts of at least `num_features` clips are used, since below the bias
    is not linear in 1 / N. None with fewer than 3 of them."""
    slope: float | None
    """C of limit + C / N."""


def sample_count_curve(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    counts: Sequence[int] = (),
    num_draws: int = 4,
    seed: int = 0,
    ddof: int = 1,
) -> SampleCountCurve:
    """The distance of random subsets of equal count from both sets, drawn without replacement.

    Args:
        counts: clips per set. Default: eight counts up to the size of the smaller set, evenly spaced in 1 / N.
        num_draws: pairs of subsets per count (one pair where the subsets are the whole sets).

    Raises ValueError for counts outside `ddof` + 1 to the size of the smaller set.
    """
    smaller = min(len(real), len(generated))
    counts = sorted(set(counts)) or default_counts(smaller, real.shape[1])
    if not counts or counts[0] <= ddof or counts[-1] > smaller:
        raise ValueError(f"Counts must lie between {ddof + 1} and {smaller}, got {list(counts)}.")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for count in counts:
        times = 1 if count == len(real) == len(generated) else num_draws
        draws.append([_draw(real, generated, count, generator, ddof) for _ in range(times)])
    means = [float(np.mean(values)) for values in draws]
    limit, slope = _extrapolate(counts, means, real.shape[1])
    return SampleCountCurve(
        counts=tuple(counts),
        means=tuple(means),
        deviations=tuple(float(np.std(v, ddof=1)) if len(v) > 1 else None for v in draws),
        limit=limit,
        slope=slope,
    )


def default_counts(largest: int, num_features: int) -> list[int]:
    """Eight counts up to `largest`, evenly spaced in 1 / N so that the line is well determined.

    The smallest is `num_features` or a quarter of `largest`, whichever is more. With `largest` up to `num_features`
    it is half of `largest`.
    """
    smallest = max(num_features, largest // 4) if largest > num_features else largest // 2
    inverse = np.linspace(1 / max(smallest, 2), 1 / max(largest, 2), _POINTS)
    return sorted({round(1 / x) for x in inverse})


def _draw(a: Tensor, b: Tensor, count: int, generator: torch.Generator, ddof: int) -> float:
    """Distance of random subsets of `count` rows."""
    rows = (torch.randperm(len(x), generator=generator)[:count] for x in (a, b))
    i, j = (index.to(a.device) for index in rows)
    return float(frechet_distance_from_features(a[i], b[j], ddof))


def _extrapolate(
    counts: Sequence[int], means: Sequence[float], num_features: int
) -> tuple[float | None, float | None]:
    """Least-squares line value = limit + slope / N through the counts of at least `num_features`."""
    points = [(1 / n, y) for n, y in zip(counts, means, strict=True) if n >= num_features]
    if len(points) < _MIN_POINTS:
        return None, None
    inverse, values = np.array(points).T
    slope, limit = np.polyfit(inverse, values, deg=1)
    return float(limit), float(slope)
