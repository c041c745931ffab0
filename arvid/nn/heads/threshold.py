"""Top-k and top-p by thresholds, for GPUs: no row of logits is sorted.

A sort of 64,000 logits moves each of them many times. The threshold of top-k is one selection, and that of top-p a
bisection with 32 masked sums. The whole sampler is one CUDA graph. The ids that stay are those of
`categorical.candidates`; of equal logits, earlier ids count as more likely. R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BITS = 32
"""Bisections that tell all float32 numbers apart."""


def draw_kept(
    logits: Float[Tensor, "r v"],
    uniform: Float[Tensor, "r 1"],
    top_k: int | None,
    top_p: float | None,
) -> Int[Tensor, " r"]:
    """An id of each row, drawn from those that stay, by a float64 number from [0, 1)."""
    kept, mass = kept_ids(logits, top_k, top_p)
    mass = torch.where(kept, mass, 0.0).cumsum(-1, dtype=torch.float64)
    # 1 - u is above 0, so the first id whose mass reaches its share has mass of its own.
    return torch.searchsorted(mass, (1 - uniform) * mass[:, -1:])[:, 0]


def kept_ids(
    logits: Float[Tensor, "r v"], top_k: int | None, top_p: float | None
) -> tuple[Bool[Tensor, "r v"], Float[Tensor, "r v"]]:
    """Which ids stay, and their probabilities, normalised over the top k."""
    logits, num = logits.float(), logits.shape[1]
    kept = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None and top_k < num:
        kept = logits >= logits.kthvalue(num - top_k + 1, keepdim=True).values
    mass = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    if top_p is None or top_p >= 1:
        return kept, mass
    keys = _keys(logits)
    # `last` is the least likely value that stays: the values above it have mass of at most p, with itself it is more.
    last = _largest(lambda t: _mass_where(keys >= t, mass).float() > top_p, keys)
    tied = keys == last
    one = torch.where(tied, mass, 0.0).amax(-1, keepdim=True).double()
    before = _mass_where(keys > last, mass) + (tied.cumsum(-1) - 1) * one
    return (keys > last) | (tied & (before.float() <= top_p)), mass


def _keys(values: Float[Tensor, "r v"]) -> Int[Tensor, "r v"]:
    """Integers in the order of the values: the bits of a float32 number, where those of negative ones are inverted."""
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(holds: Callable[[Tensor], Tensor], keys: Int[Tensor, "r v"]) -> Int[Tensor, "r 1"]:
    """The largest threshold of each row that `holds`, as it does for the row's lowest key and all lower thresholds."""
    low, high = (x.long() for x in keys.aminmax(dim=-1, keepdim=True))
    for _ in range(BITS):
        middle = (low + high + 1) >> 1
        found = holds(middle.int())
        low, high = torch.where(found, middle, low), torch.where(found, high, middle - 1)
    return low.int()


def _mass_where(mask: Bool[Tensor, "r v"], mass: Float[Tensor, "r v"]) -> Float[Tensor, "r 1"]:
    """Sums of the masses under a mask, in float64."""
    return torch.where(mask, mass, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
