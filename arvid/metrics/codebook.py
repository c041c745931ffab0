"""How much of a discrete tokenizer's vocabulary its tokens use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class Use(NamedTuple):
    """Of a vocabulary, by a set of tokens."""

    share: float
    """Of the codes that occur at all."""
    perplexity: float
    """exp of the entropy of the codes: as many equally frequent ones would be as hard to predict without context."""


class CodebookUse(Metric):
    """Counts the codes of tokens. It takes token ids, not video, unlike the metrics beside it.

    Both numbers grow with the number of tokens counted: compare them at equal counts.

    Args:
        vocabulary_size: number of codes.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        zeros = torch.zeros(vocabulary_size, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, tokens: Int[Tensor, ...]) -> None:
        """Add ids from 0 to vocabulary_size - 1, of any shape."""
        self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))

    def compute(self) -> Use:
        """Raises ValueError before the first update."""
        if not self.counts.any():
            raise ValueError("Codebook use of no tokens: update() was not called.")
        used = self.counts[self.counts > 0].double()
        frequencies = used / used.sum()
        entropy = -(frequencies * frequencies.log()).sum()
        return Use(share=len(used) / len(self.counts), perplexity=float(entropy.exp()))
