"""Codebook usage of a discrete tokenizer: share of codes in use and perplexity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(NamedTuple):
    """Usage of a vocabulary by a set of tokens."""

    share: float
    """Share of the codes that occur at least once, in 0..1."""
    perplexity: float
    """exp of the entropy of the code frequencies (nats), between 1 and the vocabulary size."""


class CodebookUse(Metric):
    """Codebook usage of token ids. (The other metrics take video.)

    Both values grow with the number of tokens: compare them at equal numbers.

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

    def compute(self) -> CodebookUsage:
        """Usage by all tokens. Raises ValueError before the first update."""
        if not self.counts.any():
            raise ValueError("Codebook use of no tokens: update() was not called.")
        used = self.counts[self.counts > 0].double()
        frequencies = used / used.sum()
        entropy = -(frequencies * frequencies.log()).sum()
        return CodebookUsage(share=len(used) / len(self.counts), perplexity=float(entropy.exp()))
