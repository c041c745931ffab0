"""Which token stands where in the sequence, when it is fed, and what is predicted from it.

| start | sequence, for blocks of P tokens | the released code |
|---|---|---|
| block | context ‖ begin-of-video block ‖ blocks | meant so, but fails (the paper's "block of special tokens") |
| none | context ‖ blocks: the first one is given | Kinetics-600; with text the paper's UCF-101 |
| hybrid | context ‖ begin-of-video ‖ block 0 ‖ P-1 middle tokens ‖ blocks 1... | its UCF-101 |

With `hybrid` the first block is predicted token by token; its last token and the middle ones then are the block that
predicts block 1. S context tokens, N tokens of the clip, K of them known, L length of the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.contracts import UserError

Start = Literal["block", "none", "hybrid"]


@dataclass(frozen=True)
class Layout:
    """The sequence of a clip of `num_tokens` tokens in blocks of `block_len`, behind `num_context` others.

    Raises UserError where that leaves nothing to predict.
    """

    num_context: int
    num_tokens: int
    block_len: int
    start: Start

    def __post_init__(self) -> None:
        if self.start != "block" and self.num_tokens < 2 * self.block_len:
            raise UserError(
                f"A clip of one block has no next block to predict, which start: {self.start} needs. "
                "Take a smaller block, or start: block."
            )

    @property
    def num_special(self) -> int:
        """Begin-of-video and middle tokens."""
        return 0 if self.start == "none" else self.block_len

    @property
    def lead(self) -> int:
        """Special tokens before the clip's first one."""
        return {"block": self.block_len, "none": 0, "hybrid": 1}[self.start]

    @property
    def first_predicted(self) -> int:
        """The first token that is predicted: without a start the first block is given."""
        return self.block_len if self.start == "none" else 0

    def length(self, known: int) -> int:
        """Of the sequence that predicts the token after `known` ones."""
        middle = self.num_special - self.lead if known >= self.block_len else 0
        return self.num_context + self.lead + known + middle

    def num_predicted(self, known: int) -> int:
        """Tokens that the end of that sequence predicts, at its last places."""
        return 1 if self.start == "hybrid" and known < self.block_len else self.block_len

    def steps(self, known: int = 0) -> Iterator[int]:
        """How many tokens are known at each step, when `known` are given."""
        known = max(known, self.first_predicted)
        while known < self.num_tokens:
            yield known
            known += self.num_predicted(known)

    def blocks(self) -> Int[Tensor, " l"]:
        """For attention: places that are fed together have one number; the context, fed first, sees itself only."""
        ends = [0, self.num_context, *(self.length(known) for known in self.steps())]
        numbers = [i for i, (a, b) in enumerate(pairwise(ends)) for _ in range(a, b)]
        return torch.tensor(numbers, device="cpu")

    def predicted(self) -> Int[Tensor, " l"]:
        """The token that each place predicts; N where it predicts none."""
        ends = {known: self.length(known) for known in self.steps()}
        found = torch.full((max(ends.values()),), self.num_tokens, device="cpu")
        for known, end in ends.items():
            num = self.num_predicted(known)
            found[end - num : end] = torch.arange(known, known + num, device="cpu")
        return found

    def places(self) -> Int[Tensor, " n"]:
        """Where in the sequence each token stands."""
        token = torch.arange(self.num_tokens, device="cpu")
        middle = torch.where(token >= self.block_len, self.num_special - self.lead, 0)
        return self.num_context + self.lead + token + middle

    @cached_property
    def pieces(self) -> list[tuple[str, int]]:
        """The sequence in order: what each piece is cut from, and its length."""
        return [
            ("context", self.num_context),
            ("special", self.lead),
            ("tokens", self.block_len),
            ("special", self.num_special - self.lead),
            ("tokens", self.num_tokens - self.block_len),
        ]
