"""What the number of clips does to a Fréchet distance, from features that were kept: no network runs again.

The distance is biased upward by about C / N (arXiv:1911.07023): numbers at different N cannot be compared. The
curve over N shows it, and a straight line in 1 / N through its points gives the limit for endless clips.
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
_FEWEST_POINTS = 3  # fewer make no line that could be seen to be wrong


@dataclass(frozen=True, kw_only=True)
class SampleCountCurve:
    """The distance at several clip counts per set, ascending, and its limit."""

    counts: tuple[int, ...]
    means: tuple[float, ...]
    """Mean distance over the subsets drawn at each count."""
    deviations: tuple[float | None, ...]
    """Their standard deviation; None where a single subset was drawn."""
    limit: float | None
    """Extrapolated to 1 / N = 0; None with fewer than 3 counts of at least `num_features` clips, below which the
    bias is not linear."""
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
        counts: clips per set; by default eight counts up to the smaller set, evenly spaced in 1 / N.
        num_draws: pairs of subsets for each count (one where both sets are taken whole).

    Raises ValueError for counts that are not from `ddof` + 1 to the smaller set.
    """
    most = min(len(real), len(generated))
    counts = sorted(set(counts)) or default_counts(most, real.shape[1])
    if not counts or counts[0] <= ddof or counts[-1] > most:
        raise ValueError(f"Counts must lie between {ddof + 1} and {most}, got {list(counts)}.")
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


def default_counts(most: int, num_features: int) -> list[int]:
    """Eight counts from the features' number (a quarter of `most` if that is more, half if it is less) to `most`.

    Evenly spaced in 1 / N, so that each weighs the same in the line.
    """
    fewest = max(num_features, most // 4) if most > num_features else most // 2
    inverse = np.linspace(1 / max(fewest, 2), 1 / max(most, 2), _POINTS)
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
    if len(points) < _FEWEST_POINTS:
        return None, None
    inverse, values = np.array(points).T
    slope, limit = np.polyfit(inverse, values, deg=1)
    return float(limit), float(slope)
