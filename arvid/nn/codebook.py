"""Search in a learned codebook."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

VECTORS_AT_ONCE = 4096
"""Number of vectors that are compared with all codes at a time. It bounds the memory."""


def nearest_codes(
    vectors: Float[Tensor, "*shape c"], codes: Float[Tensor, "V c"]
) -> Int[Tensor, "*shape"]:
    """The id of the code that is nearest to each vector."""
    # |x - c|^2 = |x|^2 - 2 x c + |c|^2, without |x|^2, which is the same for all codes.
    squares = codes.square().sum(1)
    nearest = [
        torch.addmm(squares, rows, codes.T, alpha=-2).argmin(1)
        for rows in vectors.reshape(-1, vectors.shape[-1]).split(VECTORS_AT_ONCE)
    ]
    return torch.cat(nearest).reshape(vectors.shape[:-1])
