"""Masks and orders of tokens: random masks in training, the order of sampling.

B frames or clips, L tokens of each, K tokens of a set.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.nn.attention import gather_rows
from arvid.nn.draws import draw


def draw_mask_ratio(generator: torch.Generator | None = None) -> float:
    """A masking ratio from the normal distribution N(1, 0.25²) truncated to [0.7, 1] (MAR's choice)."""
    # Inverse CDF: a uniform number between the normal distribution's mass at 0.7 (`low`) and at its mean 1 (0.5).
    low = 0.5 * (1 + math.erf((0.7 - 1) / 0.25 / math.sqrt(2)))
    uniform = low + (0.5 - low) * torch.rand((), generator=generator, dtype=torch.float64)
    ratio = 1 + 0.25 * math.sqrt(2) * torch.erfinv(2 * uniform - 1).item()
    return min(max(ratio, 0.7), 1.0)


def random_orders(
    num: int,
    num_tokens: int,
    device: torch.device,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Int[Tensor, "num tokens"]:
    """A random permutation of the tokens for each of `num` frames or clips.

    `dtype` is the type of the sorted random numbers. In half precision many of them are equal.
    """
    uniform = partial(torch.rand, device=device, generator=generator, dtype=dtype)
    shape = [num, num_tokens]
    return (uniform(shape) if generator else draw(uniform, shape)).argsort(dim=1)


def given_first(orders: Int[Tensor, "b m"], num_given: int) -> Int[Tensor, "b l"]:
    """Positions in order: first the `num_given` given tokens, then the others in their own orders."""
    first = torch.arange(num_given, device=orders.device).expand(len(orders), -1)
    return torch.cat([first, num_given + orders], dim=1)


def rank_by_confidence(
    confidence: Float[Tensor, "b k"], noise: float, generator: torch.Generator | None = None
) -> Int[Tensor, "b k"]:
    """Indices of the tokens by falling confidence. `noise`: scale of Gumbel noise on the confidence; 0 for none."""
    if noise:
        # -log of an exponential variable is a Gumbel variable.
        gumbel = -torch.empty_like(confidence).exponential_(generator=generator).log()
        confidence = confidence + noise * gumbel
    return confidence.argsort(dim=1, descending=True, stable=True)


def read_tokens(tokens: Tensor, ids: Int[Tensor, "b k"]) -> Tensor:
    """The tokens at the positions `ids`, from all tokens (B, L[, C]) of frames or clips."""
    return tokens.gather(1, ids) if tokens.ndim == 2 else gather_rows(tokens, ids)


def write_tokens(tokens: Tensor, ids: Int[Tensor, "b k"], values: Tensor) -> Tensor:
    """A copy of the tokens (B, L[, C]) with `values` at the positions `ids`."""
    index = ids if tokens.ndim == 2 else ids[..., None].expand_as(values)
    return tokens.scatter(1, index, values)
