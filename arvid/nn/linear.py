"""A linear map by the kernel that is fastest for its number of rows.

On CPUs a product of one or two rows with a large matrix should take as long as the matrix takes to be read. The kernel
behind F.linear takes twice as long (MKL, with AVX2 and AVX512 alike). The same product as a batch of parts of the
matrix, each times a column, does not: it goes to a kernel that reads ahead.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 2
"""Up to so many rows a batch of products is faster."""
LARGE = 3 * 2**16
"""Numbers of a matrix from which on it is; smaller ones stay in the cache, where both kernels are equal."""
MOST_PARTS = 16
"""As many threads can share the work."""


def linear(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "v d"], bias: Float[Tensor, " v"] | None = None
) -> Float[Tensor, "*b v"]:
    """F.linear. Without gradients, in float32 on CPUs, few rows and a large matrix are a batch of products."""
    if weight.numel() < LARGE or x.numel() > FEW_ROWS * x.shape[-1] or not _is_plain(x):
        return F.linear(x, weight, bias)
    num_parts, dim = math.gcd(len(weight), MOST_PARTS), x.shape[-1]
    parts = weight.view(num_parts, -1, dim)
    # The transpose matters: with other strides, of equal meaning for one row, another kernel takes six times as long.
    columns = x.reshape(-1, dim).T.expand(num_parts, -1, -1)  # (p, D, R)
    added = weight.new_zeros(1, 1, 1) if bias is None else bias.view(num_parts, -1, 1)
    out = torch.baddbmm(added, parts, columns)  # (p, V / p, R)
    return out.flatten(0, 1).T.contiguous().view(*x.shape[:-1], -1)


def _is_plain(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
