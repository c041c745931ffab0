"""Numbers of masked tokens of a clip: random in training, a schedule in sampling."""

from __future__ import annotations

import math
from typing import Literal

import torch

from arvid.nn.draws import draw_once
from arvid.nn.masking import draw_mask_ratio

Masking = Literal["cosine", "truncated"]
"""Distribution of the masked share in training: cos(π/2 · u) with uniform u (MaskGIT, MAGVIT), or the normal
distribution N(1, 0.25²) truncated to [0.7, 1] (MAR)."""


def draw_num_masked(masking: Masking, num_tokens: int) -> int:
    """Number of masked tokens of each clip of a batch, out of `num_tokens` that may be masked; at least 1.

    The number is rounded down by `cosine` and up by `truncated`, as the released codes do.
    """
    if masking == "truncated":
        return math.ceil(draw_once(draw_mask_ratio) * num_tokens)
    ratio = math.cos(math.pi / 2 * draw_once(lambda: torch.rand(()).item()))
    return max(math.floor(ratio * num_tokens), 1)


def masked_after(num_tokens: int, num_sets: int) -> list[int]:
    """Number of masked tokens after each set: floor(cos(π/2 · progress) · N); 0 after the last.

    Each set fills at least one token, and each set before the last leaves at least one. So a clip with few tokens has
    fewer than `num_sets` sets. (MAGVIT's release computes this in float32: 511 of 1,024 tokens at a progress of 2/3.)
    """
    left, found = num_tokens, []
    for i in range(1, num_sets):
        wanted = math.floor(math.cos(math.pi / 2 * i / num_sets) * num_tokens)
        after = max(1, min(wanted, left - 1))
        if after < left:
            found.append(after)
        left = after
    return [*found, 0]
