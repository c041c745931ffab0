"""Set sizes of NOVA's sampling, and the order in which tokens are sampled."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Order = Literal["video", "frame", "raster", "fixed"]
"""Drawn for each video or frame, or the same for all."""


def set_sizes(num_tokens: int, num_sets: int) -> list[int]:
    """Tokens per set: cosine schedule, few at first; empty sets are left out."""
    left = [round(math.cos(math.pi * i / (2 * num_sets)) * num_tokens) for i in range(num_sets + 1)]
    sizes = [before - after for before, after in pairwise(left)]
    return [size for size in sizes if size > 0]


def same_order(order: Order, num_tokens: int) -> Int[Tensor, " l"] | None:
    """The order that all frames have in common: raster order, or a random permutation that is always the same. None
    where each video or frame has another."""
    if order == "raster":
        return torch.arange(num_tokens, device="cpu")
    if order == "fixed":
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.randperm(num_tokens, generator=generator, device="cpu")
    return None
