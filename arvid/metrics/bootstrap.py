"""Bootstrap of a Fréchet distance: the distances of both sets resampled with replacement.

A resample is a vector w: how often each clip was drawn. Its covariance is a weighted covariance of fixed features.
With the centred features X = Q R, factored once, it is

    S_w = R' (Q' W Q - q q' / n) R / (n - ddof),    W = diag(w),  q = Q' w

The bracket is well conditioned because Q has orthonormal columns. Its Cholesky factor U gives S_w = (U R)' (U R). The
trace of the square root is then the nuclear norm of U_a (R_a R_b') U_b', where R_a R_b' is also computed once. So one
resample costs a symmetric product, a Cholesky factor and the singular values of one matrix. The direct way costs two QR
factorisations over all clips. The values equal `arvid.metrics.frechet.frechet_distance_from_features` of the drawn
clips up to rounding (1e-12 of the value).

numpy computes this on the CPU: it computes only one half of the product of a matrix with its own transpose.

Letters: n clips, k distinct clips of a resample, d features, r = min(n, d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from arvid.metrics.videos import check_num_clips

INTERVAL_DRAWS = 200
"""Number of resamples for the confidence interval in a record."""
STD_DRAWS = 100
"""Number of resamples for the standard deviation in a record: the first of the `INTERVAL_DRAWS`."""
_MIN_PIVOT = 1e-6
"""Smallest accepted squared pivot of the Cholesky factor. The bracket's eigenvalues lie around 1; smaller pivots lose
digits to rounding."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Confidence interval of a distance at a confidence `level`, e.g. 0.95."""

    low: float
    high: float
    level: float


def bootstrap_distances(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, num: int, seed: int = 0, ddof: int = 1
) -> Float64[Tensor, " num"]:
    """Distances of `num` bootstrap resamples. The first ones are the same for any `num`.

    Their mean is a biased estimate of the distance: repeated clips make it larger. Raises ValueError if a set has
    `ddof` rows or fewer.
    """
    sets = _Resampled(a, ddof), _Resampled(b, ddof)
    cross = sets[0].r @ sets[1].r.T  # (r, r)
    offset = sets[0].mean - sets[1].mean  # (d,)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num):
        draws = [s.draw(generator) for s in sets]
        (mean_a, trace_a, factor_a), (mean_b, trace_b, factor_b) = draws
        # tr (S_a S_b)^(1/2) is the nuclear norm of (F_a R_a)(F_b R_b)' = F_a (R_a R_b') F_b'
        nuclear = np.linalg.svd(factor_a @ cross @ factor_b.T, compute_uv=False).sum()
        difference = offset + mean_a - mean_b
        values.append(difference @ difference + trace_a + trace_b - 2 * nuclear)
    return torch.tensor(np.array(values)).clamp(min=0)  # rounding may give a negative value


def bootstrap_std(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    num: int = STD_DRAWS,
    seed: int = 0,
    ddof: int = 1,
) -> float:
    """Standard deviation of the `bootstrap_distances`: the bootstrap estimate of the distance's standard error."""
    return float(bootstrap_distances(a, b, num=num, seed=seed, ddof=ddof).std())


def bootstrap_interval(
    distance: float, draws: Float64[Tensor, " num"], *, level: float = 0.95
) -> Interval:
    """Percentile interval of a distance from its `bootstrap_distances`, shifted to contain the distance.

    Repeated clips make resampled distances larger than the distance itself, most with few clips. So the percentiles
    are shifted: the median of the resamples moves to the distance. The low end is at least 0.

    Raises ValueError for a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level lies between 0 and 1, got {level}.")
    tail = (1 - level) / 2
    low, middle, high = np.quantile(draws.numpy(), (tail, 0.5, 1 - tail))
    return Interval(
        low=max(0.0, distance + float(low - middle)),
        high=distance + float(high - middle),
        level=level,
    )


class _Resampled:
    """A set of features, factored once for all draws of its clips."""

    def __init__(self, features: Float[Tensor, "n d"], ddof: int) -> None:
        check_num_clips(len(features), ddof)
        x: Array = features.detach().cpu().double().numpy()
        self.divisor = len(x) - ddof
        self.mean = x.mean(0)
        x = x - self.mean
        self.squares = (x**2).sum(1)  # (n,)
        self.q, self.r = np.linalg.qr(x)  # (n, r), (r, d)

    def draw(self, generator: torch.Generator) -> tuple[Array, float, Array]:
        """One resample: its mean minus the mean of all clips (d,), the trace of its covariance S_w, and a factor F.

        S_w = (F R)' (F R).
        """
        n = len(self.q)
        # torch's generator, not numpy's: values of existing records depend on these draws
        rows = torch.randint(n, (n,), generator=generator)
        counts = torch.bincount(rows, minlength=n).double().numpy()
        drawn = np.flatnonzero(counts)  # about 63 % of the clips
        weights, q = counts[drawn], self.q[drawn]  # (k,), (k, r)
        mean_q = weights @ q / n
        mean = mean_q @ self.r
        # tr S_w = (sum of w |x|^2 - n |mean|^2) / (n - ddof)
        trace = float(counts @ self.squares - n * (mean @ mean)) / self.divisor
        factor = _factor(q, weights, mean_q) / math.sqrt(self.divisor)
        return mean, trace, factor


def _factor(q: Array, weights: Array, mean: Array) -> Array:
    """Factor F (k or r, r) with F' F = sum of w (q - mean)' (q - mean) over the rows of q (k, r)."""
    rows, columns = q.shape
    root = np.sqrt(weights)[:, None]
    if rows <= columns:  # the centred rows are already a factor, and smaller than a Cholesky factor
        return root * (q - mean)
    scaled = root * q
    try:
        squared = scaled.T @ scaled - weights.sum() * np.outer(mean, mean)
        upper: Array = np.linalg.cholesky(squared).T
        if upper.diagonal().min() ** 2 >= _MIN_PIVOT:
            return upper
    except np.linalg.LinAlgError:
        pass
    # The bracket is singular if a direction comes from few clips and none of them was drawn: use an exact QR.
    exact: Array = torch.linalg.qr(torch.from_numpy(root * (q - mean)), mode="r").R.numpy()
    return exact
