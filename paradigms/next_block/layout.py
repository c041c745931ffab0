"""Layout of the sequence: the order of the tokens, their positions, the steps of decoding, what a position predicts.

| start | sequence, for blocks of P tokens | in the released code |
|---|---|---|
| block | context ‖ begin-of-video block ‖ blocks | intended, but fails (the paper's "block of special tokens") |
| none | context ‖ blocks: the first one is given | Kinetics-600; with text, the paper's UCF-101 |
| hybrid | context ‖ begin-of-video ‖ block 0 ‖ P-1 middle tokens ‖ blocks 1... | UCF-101 |

With `hybrid` the first block is predicted token by token. Its last token and the P-1 middle tokens then form the block
that predicts block 1. S context tokens, N tokens of the clip, K known tokens, L length of the sequence.

Tokens are in block-major order: blocks in raster order, and raster order inside each block. With `spacing` "adjacent"
the grid is cut into T x H x W blocks. With "strided" a frame is cut into H x W regions. A block then has the token at
the same place of each region, in T frames (PAR, arXiv 2412.15119).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.contracts import TokenGrid, UserError

Start = Literal["block", "none", "hybrid"]
Block = tuple[int, int, int]
Spacing = Literal["adjacent", "strided"]


@dataclass(frozen=True)
class Layout:
    """The sequence of a clip of `num_tokens` tokens in blocks of `block_len`, after `num_context` context tokens.

    Raises UserError if there is nothing to predict.
    """

    num_context: int
    num_tokens: int
    block_len: int
    start: Start

    def __post_init__(self) -> None:
        if self.start != "block" and self.num_tokens < 2 * self.block_len:
            raise UserError(
                f"A clip of one block has no next block to predict, which start: {self.start} needs. "
                "Use a smaller block, or start: block."
            )

    @property
    def num_special(self) -> int:
        """Number of special tokens: begin-of-video and middle tokens."""
        return 0 if self.start == "none" else self.block_len

    @property
    def lead(self) -> int:
        """Number of special tokens before the clip's first token."""
        return {"block": self.block_len, "none": 0, "hybrid": 1}[self.start]

    @property
    def first_predicted(self) -> int:
        """Index of the first predicted token. With start "none" the first block is given."""
        return self.block_len if self.start == "none" else 0

    def length(self, known: int) -> int:
        """Length of the sequence that predicts the token after `known` tokens."""
        middle = self.num_special - self.lead if known >= self.block_len else 0
        return self.num_context + self.lead + known + middle

    def num_predicted(self, known: int) -> int:
        """Number of tokens that the last positions of that sequence predict."""
        return 1 if self.start == "hybrid" and known < self.block_len else self.block_len

    def steps(self, known: int = 0) -> Iterator[int]:
        """Number of known tokens at each step of decoding, if `known` are given."""
        known = max(known, self.first_predicted)
        while known < self.num_tokens:
            yield known
            known += self.num_predicted(known)

    def blocks(self) -> Int[Tensor, " l"]:
        """Index of the attention block of each position. Positions of the same step are one block; the context is
        block 0."""
        ends = [0, self.num_context, *(self.length(known) for known in self.steps())]
        indices = [i for i, (a, b) in enumerate(pairwise(ends)) for _ in range(a, b)]
        return torch.tensor(indices, device="cpu")

    def predicted(self) -> Int[Tensor, " l"]:
        """Index of the token that each position predicts; N if it predicts none."""
        ends = {known: self.length(known) for known in self.steps()}
        found = torch.full((max(ends.values()),), self.num_tokens, device="cpu")
        for known, end in ends.items():
            num = self.num_predicted(known)
            found[end - num : end] = torch.arange(known, known + num, device="cpu")
        return found

    def token_positions(self) -> Int[Tensor, " n"]:
        """Position of each token in the sequence."""
        token = torch.arange(self.num_tokens, device="cpu")
        middle = torch.where(token >= self.block_len, self.num_special - self.lead, 0)
        return self.num_context + self.lead + token + middle

    @property
    def pieces(self) -> list[tuple[str, int]]:
        """Pieces of the sequence in order: the source of each piece, and its length."""
        return [
            ("context", self.num_context),
            ("special", self.lead),
            ("tokens", self.block_len),
            ("special", self.num_special - self.lead),
            ("tokens", self.num_tokens - self.block_len),
        ]


def block_order(grid: TokenGrid, block: Block, spacing: Spacing = "adjacent") -> Int[Tensor, " n"]:
    """Raster index of each token in block-major order. The identity for blocks that are raster runs.

    Raises UserError if the block does not tile the grid.
    """
    sizes = (grid.t, grid.h, grid.w)
    if min(block) < 1 or any(size % b for size, b in zip(sizes, block, strict=True)):
        raise UserError(
            f"A block of {'x'.join(map(str, block))} tokens does not tile the grid "
            f"{'x'.join(map(str, sizes))}: each side must divide the grid's."
        )
    (bt, bh, bw), (t, h, w) = block, sizes
    index = torch.arange(grid.num_tokens, device="cpu")
    if spacing == "strided":
        # bh x bw regions of h/bh x w/bw places: the place varies slowly, the region inside a block fast.
        regions = index.view(t // bt, bt, bh, h // bh, bw, w // bw)
        return regions.permute(0, 3, 5, 1, 2, 4).flatten()
    # t/bt x h/bh x w/bw blocks of bt x bh x bw tokens: the block varies slowly, the token inside it fast.
    blocks = index.view(t // bt, bt, h // bh, bh, w // bw, bw)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten()


def raster_block(num_tokens: int, grid: TokenGrid) -> Block:
    """The block whose tokens are a raster run of `num_tokens`. (The released code only has such blocks.)

    Raises UserError if no such block tiles the grid.
    """
    row, frame = grid.w, grid.tokens_per_frame
    # A part of a row, whole rows of a frame, or whole frames. `num` units must divide the `count` of the grid.
    for sides, unit, count in (
        ((1, 1, num_tokens), 1, row),
        ((1, num_tokens // row, row), row, grid.h),
        ((num_tokens // frame, grid.h, grid.w), frame, grid.t),
    ):
        num = num_tokens // unit
        if num_tokens % unit == 0 and 0 < num <= count and count % num == 0:
            return sides
    raise UserError(
        f"No block that is a run of {num_tokens} tokens tiles the grid {grid.t}x{grid.h}x{grid.w}."
    )
