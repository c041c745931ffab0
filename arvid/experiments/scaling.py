"""Power laws of a quality against compute: y = a * C^b, fitted over the sizes of one method.

With the few sizes of a laptop or one GPU, an irreducible loss cannot be told from the exponent, so it is not fitted
(Hoffmann et al., arXiv 2203.15556, fit it over hundreds of runs). Exponents of different y are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arvid.contracts import UserError
from arvid.experiments.effects import LEVEL, RESAMPLES, Estimate


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * C^exponent."""

    factor: float
    exponent: Estimate

    def at(self, compute: float) -> float:
        """y at an amount of compute."""
        return self.factor * float(compute**self.exponent.value)


def fit_power_law(points: Mapping[float, Sequence[float]]) -> PowerLaw:
    """Least squares on logarithms, with the exponent's 95 % interval from a bootstrap of the residuals.

    Args:
        points: compute -> values, one per seed. Values and compute are positive.

    Raises UserError for fewer than three amounts of compute, and for values that are not positive.
    """
    if len(points) < 3:
        raise UserError("A power law needs at least three sizes.")
    x = np.log([compute for compute, values in points.items() for _ in values])
    values = np.array([value for found in points.values() for value in found])
    if (values <= 0).any():
        raise UserError("A power law needs positive values.")
    y = np.log(values)
    slope, offset = np.polyfit(x, y, 1)
    fitted = offset + slope * x
    residuals = (y - fitted) * np.sqrt(len(y) / max(len(y) - 2, 1))
    drawn = np.random.default_rng(0).choice(residuals, (RESAMPLES, len(y)))
    centred = x - x.mean()
    slopes = (fitted + drawn) @ centred / (centred @ centred)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(slopes, [tail, 1 - tail])
    return PowerLaw(float(np.exp(offset)), Estimate(float(slope), float(low), float(high)))
