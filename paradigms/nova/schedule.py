"""Which tokens of a frame are visible: in training at random, in sampling set by set."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.nn.draws import draw


def draw_mask_ratio(generator: torch.Generator | None = None) -> float:
    """A masking ratio from the normal distribution N(1, 0.25²) truncated to [0.7, 1] (MAR's choice)."""
    low = 0.5 * (1 + math.erf((0.7 - 1) / 0.25 / math.sqrt(2)))  # its cumulative mass at 0.7
    uniform = low + (0.5 - low) * torch.rand((), generator=generator, dtype=torch.float64)
    ratio = 1 + 0.25 * math.sqrt(2) * torch.erfinv(2 * uniform - 1).item()
    return min(max(ratio, 0.7), 1.0)


def set_sizes(num_tokens: int, num_sets: int) -> list[int]:
    """Tokens per set: cosine schedule, few at first; empty sets are left out."""
    left = [round(math.cos(math.pi * i / (2 * num_sets)) * num_tokens) for i in range(num_sets + 1)]
    sizes = [before - after for before, after in pairwise(left)]
    return [size for size in sizes if size > 0]


def random_orders(
    num: int, num_tokens: int, device: torch.device, generator: torch.Generator | None = None
) -> Int[Tensor, "num tokens"]:
    """A random permutation of the tokens for each of `num` frames or clips."""
    uniform = partial(torch.rand, device=device, generator=generator)
    shape = [num, num_tokens]
    return (uniform(shape) if generator else draw(uniform, shape)).argsort(dim=1)
