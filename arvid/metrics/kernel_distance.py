"""Maximum mean discrepancy with a polynomial kernel between two sets of features, in float64.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),   k(x, y) = (x.y / d + c)^p

`kernel_video_distance` is KVD as TATS computes it (tats/fvd): p = 3, c = 1 over the logits of FVD, the diagonals
left out of the first two means, which makes the estimate unbiased: it may be negative, and unlike the Fréchet
distance it does not shrink with the number of clips. `jedi_distance` is the kernel of JEDi (arXiv:2410.05203,
package videojedi), meant for V-JEPA features: p = 2, c = 0, plain means, times 100.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS_AT_ONCE = 4096  # kernels of 50,000 clips do not fit into memory at once


def kernel_video_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """KVD of two sets of features; n and m may differ. Raises ValueError for fewer than 2 in a set."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"KVD needs at least 2 clips in each set, got {len(a)} and {len(b)}.")
    return _within(a, 3, 1.0) + _within(b, 3, 1.0) - 2 * _mean(a, b, 3, 1.0)


def jedi_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """JEDi's distance of two sets of features, never negative. Raises ValueError for an empty set."""
    if not len(a) or not len(b):
        raise ValueError(f"JEDi needs clips in each set, got {len(a)} and {len(b)}.")
    return 100 * (_mean(a, a, 2, 0.0) + _mean(b, b, 2, 0.0) - 2 * _mean(a, b, 2, 0.0))


def _within(x: Tensor, degree: int, constant: float) -> Tensor:
    """Mean kernel of the pairs of different rows."""
    num = len(x)
    own = (x.double().square().mean(1) + constant).pow(degree)
    return (_mean(x, x, degree, constant) * num**2 - own.sum()) / (num * (num - 1))


def _mean(a: Tensor, b: Tensor, degree: int, constant: float) -> Tensor:
    """Mean kernel of all pairs of a row of `a` and one of `b`."""
    a, b = a.double(), b.double()
    sums = [
        (rows @ b.T / a.shape[1] + constant).pow(degree).sum() for rows in a.split(_ROWS_AT_ONCE)
    ]
    return torch.stack(sums).sum() / (len(a) * len(b))
