"""What tells the places of a sequence apart: one learned vector each, or rotary codes of (t, h, w)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenGrid, UserError
from arvid.nn.positions import Rotation, rotation
from arvid.paradigms.next_block.layout import Layout

PlaceOrder = Literal["sequence", "grid"]
"""Whether a token's place is where it stands in the sequence, or where it would stand in raster order."""


class LearnedPlaces(nn.Module):
    """One table over the whole sequence, context included (as released).

    Args:
        layout: of the longest sequence.
        order: raster index of each token of the sequence.
        place_order: see `PlaceOrder`; the same for blocks that are raster runs.
        dim: D.
        num_rows: rows of the table; by default those that are used. As released 5120, of which it uses at most 1288.
    """

    rows: Tensor

    def __init__(
        self,
        layout: Layout,
        order: Int[Tensor, " n"],
        place_order: PlaceOrder,
        dim: int,
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        rows = torch.arange(layout.length(layout.num_tokens), device="cpu")
        if place_order == "grid":
            places = layout.places()
            rows[places] = places[order]
        rows = rows[: len(layout.blocks())]
        needed = int(rows.max()) + 1
        if num_rows is not None and num_rows < needed:
            raise UserError(f"The sequence needs a table of {needed} places, not {num_rows}.")
        self.register_buffer("rows", rows, persistent=False)
        self.positions = nn.Parameter(torch.empty(num_rows or needed, dim))
        self.in_sequence = rows.tolist() == list(range(len(rows)))

    def forward(self, start: int, end: int) -> Float[Tensor, "l d"]:
        """The vectors of places start..end-1; a slice of the table where it is in order."""
        if self.in_sequence:
            return self.positions[start:end]
        return self.positions[self.rows[start:end]]


class RotaryPlaces(nn.Module):
    """Rotary codes: a token stands at (t + 1, h, w), a special token before the token that it predicts, at t = 0, and
    the context at times before that."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, layout: Layout, order: Int[Tensor, " n"], grid: TokenGrid, head_dim: int
    ) -> None:
        super().__init__()
        frame = grid.tokens_per_frame
        raster = [order // frame + 1, order % frame // grid.w, order % grid.w]
        place = torch.zeros(layout.length(layout.num_tokens), 3, dtype=torch.long, device="cpu")
        place[: layout.num_context, 0] = torch.arange(-layout.num_context, 0, device="cpu")
        place[layout.places()] = torch.stack(raster, dim=1)
        special = torch.ones(len(place), dtype=torch.bool, device="cpu")
        special[: layout.num_context] = False
        special[layout.places()] = False
        of_block = torch.stack(raster, dim=1)[: layout.num_special]
        of_block[:, 0] = 0
        place[special] = of_block
        cos, sin = rotation(place, head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, start: int, end: int) -> Rotation:
        """The codes of places start..end-1."""
        return self.cos[start:end], self.sin[start:end]
