"""Maximum mean discrepancy with a polynomial kernel between two sets of features, in float64.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),   k(x, y) = (x.y / d + c)^p

`kernel_video_distance` is KVD as in TATS (tats/fvd): p = 3, c = 1 over FVD's logits. The first two means leave out the
diagonal, which makes the estimate unbiased. So it may be negative, and unlike the Fréchet distance it has no bias that
depends on the number of clips. `jedi_distance` is JEDi (arXiv:2410.05203, package videojedi), meant for V-JEPA
features: p = 2, c = 0, means with the diagonal, times 100.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS_AT_ONCE = 4096  # the full kernel matrix of 50,000 clips would need 20 GB


def kernel_video_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """KVD of two sets of features; n and m may differ. Raises ValueError for a set of fewer than 2."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"KVD needs at least 2 clips in each set, got {len(a)} and {len(b)}.")
    return _within(a, 3, 1.0) + _within(b, 3, 1.0) - 2 * _mean(a, b, 3, 1.0)


def jedi_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """JEDi distance of two sets of features, never negative. Raises ValueError for an empty set."""
    if not len(a) or not len(b):
        raise ValueError(f"JEDi needs clips in each set, got {len(a)} and {len(b)}.")
    return 100 * (_mean(a, a, 2, 0.0) + _mean(b, b, 2, 0.0) - 2 * _mean(a, b, 2, 0.0))


def _within(x: Tensor, degree: int, constant: float) -> Tensor:
    """Mean kernel over pairs of different rows: the mean over all pairs without the diagonal."""
    num = len(x)
    own = (x.double().square().mean(1) + constant).pow(degree)  # k(x, x), the diagonal
    return (_mean(x, x, degree, constant) * num**2 - own.sum()) / (num * (num - 1))


def _mean(a: Tensor, b: Tensor, degree: int, constant: float) -> Tensor:
    """Mean kernel over all pairs of a row of `a` and a row of `b`."""
    a, b = a.double(), b.double()
    sums = [
        (rows @ b.T / a.shape[1] + constant).pow(degree).sum() for rows in a.split(_ROWS_AT_ONCE)
    ]
    return torch.stack(sums).sum() / (len(a) * len(b))
