"""Code vectors of the ids of a discrete tokenizer, if it provides them: `TokenSpec.codes`.

Ids alone cannot be averaged or compared. With the vectors a paradigm can reduce a frame of ids to a smaller one, or
replace an id by a similar one. V ids, d numbers of a vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.errors import UserError
from arvid.lasting import constant
from arvid.ranges import at_least


class Codes(ABC):
    """The vector of each id, and the id of each vector."""

    @abstractmethod
    def vectors(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... d"]:
        """The vectors of the ids, in float32 on their device. `vectors(torch.arange(V))` is the whole table."""

    @abstractmethod
    def nearest(self, vectors: Float[Tensor, "... d"]) -> Int[Tensor, ...]:
        """The int64 ids whose vectors are nearest to these."""


class ScalarCodes(Codes):
    """Codes of finite scalar quantisation (FSQ, arXiv 2309.15505): all points of a grid in [-1, 1]^d.

    An id has one digit for each of the d numbers; the first digit has place value 1. Digit i of a number with L levels
    means the value (i - L // 2) / (L // 2).

    Args:
        levels: number of levels of each of the d numbers, two or more.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        if not levels:
            raise UserError("Scalar codes need the levels of one number or more, got none.")
        at_least(2).require(levels=tuple(levels))
        self.levels = tuple(levels)

    def vectors(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... d"]:
        levels, half, basis = self._tensors(ids.device)
        digits = ids[..., None] // basis % levels
        return (digits - half) / half

    def nearest(self, vectors: Float[Tensor, "... d"]) -> Int[Tensor, ...]:
        levels, half, basis = self._tensors(vectors.device)
        digits = (vectors.float() * half).round().long() + half
        return (digits.clamp_min(0).minimum(levels - 1) * basis).sum(-1)

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each number (d,): its levels, half of its levels, and the place value of its digit."""
        levels = constant(self.levels, device, torch.long)
        basis = tuple(math.prod(self.levels[:i]) for i in range(len(self.levels)))
        return levels, levels // 2, constant(basis, device, torch.long)
