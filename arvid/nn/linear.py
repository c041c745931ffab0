"""Linear maps: the kernel that is fastest for the number of rows, and the initial weights.

On CPUs, a product of one or two rows with a large matrix is limited by reading the matrix. F.linear takes twice that
time (MKL, with AVX2 and AVX512). If the matrix is split into parts and the product is a batch of matrix-vector
products, MKL uses a kernel that prefetches, which reaches the limit.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 2
"""Maximum number of rows for which a batch of products is faster."""
LARGE = 3 * 2**16
"""Minimum size of such a matrix. Smaller ones stay in the CPU's cache, where both kernels are equally fast."""
MOST_PARTS = 16
"""Maximum number of parts, and so of threads that share the work."""


def linear(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "v d"], bias: Float[Tensor, " v"] | None = None
) -> Float[Tensor, "*b v"]:
    """F.linear. Few rows times a large matrix are a batch of products (on CPUs, in float32, without gradients)."""
    if weight.numel() < LARGE or x.numel() > FEW_ROWS * x.shape[-1] or not _is_plain(x):
        return F.linear(x, weight, bias)
    num_parts, dim = math.gcd(len(weight), MOST_PARTS), x.shape[-1]
    parts = weight.view(num_parts, -1, dim)
    # Keep the transpose: other strides mean the same for one row, but select a kernel that takes six times as long.
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


def initialise_linear(module: nn.Module) -> None:
    """Draw the weights of linear maps and embeddings from N(0, 0.02²) and set biases to 0, as GPT-2 does.

    A diffusion head (`head.net`) keeps torch's defaults.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Embedding) and not name.startswith("head.net"):
            nn.init.normal_(child.weight, std=0.02)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)
