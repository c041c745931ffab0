"""Positional embeddings of next-block prediction: learned, or rotary over (t, h, w)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenGrid, UserError
from arvid.nn.positions import RotaryTable
from arvid.paradigms.next_block.layout import Layout

PositionOrder = Literal["sequence", "grid"]
"""sequence: a token's position is its index in the sequence. grid: its index in raster order."""


class LearnedPositions(nn.Module):
    """Learned positional embeddings: one table over the whole sequence, context included (as released).

    Args:
        layout: layout of the longest sequence.
        order: raster index of each token of the sequence.
        position_order: see `PositionOrder`. Both are the same for blocks that are raster runs.
        dim: model width D.
        num_rows: rows of the table; by default as many as needed. The release has 5120 and uses at most 1288.
    """

    rows: Tensor
    """Row of the table for each position of the sequence."""

    def __init__(
        self,
        layout: Layout,
        order: Int[Tensor, " n"],
        position_order: PositionOrder,
        dim: int,
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        rows = torch.arange(layout.length(layout.num_tokens), device="cpu")
        if position_order == "grid":
            # Token i has the raster index order[i]: it gets the row of the order[i]-th token of the sequence.
            positions = layout.token_positions()
            rows[positions] = positions[order]
        rows = rows[: len(layout.blocks())]  # the last block is never an input
        needed = int(rows.max()) + 1
        if num_rows is not None and num_rows < needed:
            raise UserError(f"The sequence needs a table of {needed} positions, not {num_rows}.")
        self.register_buffer("rows", rows, persistent=False)
        self.positions = nn.Parameter(torch.empty(num_rows or needed, dim))
        self.in_sequence = rows.tolist() == list(range(len(rows)))

    def forward(self, start: int, end: int) -> Float[Tensor, "l d"]:
        """The embeddings of positions start..end-1."""
        if self.in_sequence:  # a slice is faster than indexing
            return self.positions[start:end]
        return self.positions[self.rows[start:end]]


class RotaryPositions(RotaryTable):
    """Rotary positional embeddings over (t, h, w).

    A token has the coordinates (t + 1, h, w). A special token has t = 0 and the rows and columns of the first block.
    Context token i has time i - S, with S context tokens.
    """

    def __init__(
        self, layout: Layout, order: Int[Tensor, " n"], grid: TokenGrid, head_dim: int
    ) -> None:
        frame = grid.tokens_per_frame
        raster = [order // frame + 1, order % frame // grid.w, order % grid.w]
        length = layout.length(layout.num_tokens)
        coordinates = torch.zeros(length, 3, dtype=torch.long, device="cpu")
        coordinates[: layout.num_context, 0] = torch.arange(-layout.num_context, 0, device="cpu")
        coordinates[layout.token_positions()] = torch.stack(raster, dim=1)
        special = torch.ones(length, dtype=torch.bool, device="cpu")
        special[: layout.num_context] = False
        special[layout.token_positions()] = False
        # All remaining positions are special tokens: they get the places of the first block, at time 0.
        of_block = torch.stack(raster, dim=1)[: layout.num_special]
        of_block[:, 0] = 0
        coordinates[special] = of_block
        super().__init__(coordinates, head_dim)
