"""The bootstrap of a Fréchet distance: its value when the clips of both sets are drawn anew, with replacement.

A draw is a count w of each clip, so its covariance is a weighted one of features that never change:

    S_w = R' (Q' W Q - q q' / n) R / (n - ddof),    W = diag(w),  q = Q' w

with the centred features X = Q R, factored once. The bracket is well conditioned, since Q has orthonormal columns:
its Cholesky factor U gives S_w = (U R)' (U R), and with R_a R_b' also made once, the trace of the square root is the
nuclear norm of U_a (R_a R_b') U_b'. So a draw costs one symmetric product of its clips, a Cholesky factor and the
singular values of one matrix, instead of two QR factorisations of all clips. The values are those of
`arvid.metrics.frechet.frechet_distance_from_features` on the drawn clips, up to rounding (1e-12 of the value).

The arithmetic is numpy's on the CPU: its product of a matrix with its own transpose computes one half alone.

Letters: n clips, k different clips of a draw, d features, r = min(n, d).
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

NUM_DRAWS = 200
"""Draws that the interval of a record is made of."""
SPREAD_DRAWS = 100
"""The first of them, which its spread is made of."""
_LEAST_PIVOT = 1e-6
"""Of a Cholesky factor, squared; the bracket's eigenvalues lie around 1. Below it, rounding would show."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bounds that hold `level` of the draws."""

    low: float
    high: float
    level: float


def bootstrap_distances(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, num: int, seed: int = 0, ddof: int = 1
) -> Float64[Tensor, " num"]:
    """The distance of `num` draws. The first draws are the same for any `num`.

    Their mean is no estimate of the distance: repeated clips make it larger. Raises ValueError if a set has `ddof`
    rows or fewer.
    """
    sets = _Resampled(a, ddof), _Resampled(b, ddof)
    cross = sets[0].r @ sets[1].r.T  # (r, r)
    offset = sets[0].mean - sets[1].mean  # (d,)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num):
        draws = [s.draw(generator) for s in sets]
        (mean_a, trace_a, factor_a), (mean_b, trace_b, factor_b) = draws
        nuclear = np.linalg.svd(factor_a @ cross @ factor_b.T, compute_uv=False).sum()
        difference = offset + mean_a - mean_b
        values.append(difference @ difference + trace_a + trace_b - 2 * nuclear)
    return torch.tensor(np.array(values)).clamp(min=0)  # never below 0 but for rounding


def bootstrap_spread(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    num: int = SPREAD_DRAWS,
    seed: int = 0,
    ddof: int = 1,
) -> float:
    """Standard deviation of the `bootstrap_distances`, for the spread of a number of few clips."""
    return float(bootstrap_distances(a, b, num=num, seed=seed, ddof=ddof).std())


def bootstrap_interval(
    distance: float, draws: Float64[Tensor, " num"], *, level: float = 0.95
) -> Interval:
    """Percentile interval of a distance from its `bootstrap_distances`.

    Repeated clips make every draw larger than the distance itself, all the more the fewer clips there are. So
    the percentiles are moved by what lies between the draws' median and the distance: the interval says how far
    the number could be another by chance, and holds the number. Its low end is at least 0.

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
        """Mean (d,) less that of all clips, trace of the covariance, and a factor F of it: S_w = (F R)' (F R)."""
        n = len(self.q)
        rows = torch.randint(n, (n,), generator=generator)
        counts = torch.bincount(rows, minlength=n).double().numpy()
        drawn = np.flatnonzero(counts)
        weights, q = counts[drawn], self.q[drawn]  # (k,), (k, r)
        mean_q = weights @ q / n
        mean = mean_q @ self.r
        trace = float(counts @ self.squares - n * (mean @ mean)) / self.divisor
        factor = _factor(q, weights, mean_q) / math.sqrt(self.divisor)
        return mean, trace, factor


def _factor(q: Array, weights: Array, mean: Array) -> Array:
    """F (k or r, r) with F' F = sum of w (q - mean)' (q - mean) over the rows of q (k, r)."""
    rows, columns = q.shape
    root = np.sqrt(weights)[:, None]
    if rows <= columns:
        return root * (q - mean)
    scaled = root * q
    try:
        squared = scaled.T @ scaled - weights.sum() * np.outer(mean, mean)
        upper: Array = np.linalg.cholesky(squared).T
        if upper.diagonal().min() ** 2 >= _LEAST_PIVOT:
            return upper
    except np.linalg.LinAlgError:
        pass
    # A direction that few clips carry is lost where none of them is drawn.
    exact: Array = torch.linalg.qr(torch.from_numpy(root * (q - mean)), mode="r").R.numpy()
    return exact
