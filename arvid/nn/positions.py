"""Positional embeddings: sine-cosine embeddings of positions, times and scalars, and rotary embeddings."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenGrid, UserError

SCALAR_CODE_DIM = 256
Rotation = tuple[Float[Tensor, "... _n e"], Float[Tensor, "... _n e"]]
"""Cosines and sines of the rotary angles of N positions, for head dimension E; (B, 1, N, E) if they differ by clip."""
CodeForm = Literal["arvid", "far"]
"""Frequencies of the sine-cosine embedding of a scalar, and pairs of channels that rotary embeddings give to each axis:
arvid's, or those of FAR's released models."""


def frequencies(num: int, device: torch.device | None = None) -> Float[Tensor, " num"]:
    """10000^(-k/num) for k = 0..num-1."""
    return 10_000.0 ** (-torch.arange(num, dtype=torch.float32, device=device) / num)


def scalar_code(
    value: Tensor, *, cos_first: bool = False, form: CodeForm = "arvid"
) -> Float[Tensor, "*shape 256"]:
    """256-d sine-cosine embedding of each scalar (...), float32: sin ‖ cos, or cos ‖ sin as in NOVA's diffusion MLP.

    The frequencies of the form "far" are 10000^(-k/127) for k = 0..127, computed as diffusers does: times reach 1000,
    so the rounding of the frequencies shows.
    """
    num = SCALAR_CODE_DIM // 2
    if form == "arvid":
        omega = frequencies(num, value.device)
    else:
        exponents = -math.log(10_000) * torch.arange(num, dtype=torch.float32, device=value.device)
        omega = (exponents / (num - 1)).exp()
    angle = value.float()[..., None] * omega
    parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=-1)


def grid_code(height: int, width: int, dim: int) -> Float[Tensor, "hw dim"]:
    """2-D sine-cosine embedding of a grid in raster order: sin and cos of the column, then of the row.

    The order is NOVA's (width first), with integer positions. `dim` must be a multiple of 4.
    """
    if dim % 4:
        raise UserError(
            f"A 2-D sine-cosine embedding needs a width that is a multiple of 4, not {dim}."
        )
    omega = frequencies(dim // 4)
    rows = torch.arange(height).repeat_interleave(width)[:, None] * omega  # (HW, D/4)
    columns = torch.arange(width).repeat(height)[:, None] * omega
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=-1)


def rotation(coordinates: Int[Tensor, "n 3"], head_dim: int, form: CodeForm = "arvid") -> Rotation:
    """Rotary embeddings (arXiv 2104.09864) of positions (t, h, w): each axis rotates a third of a head's pairs.

    A pair is the dimensions i and i + E/2. In the form "far", h and w rotate three eighths of the pairs each. t gets
    those that are left.
    """
    if head_dim % 2 or head_dim < 6:
        raise UserError(
            f"Rotary embeddings of three axes need an even head dimension of at least 6, not {head_dim}."
        )
    pairs = head_dim // 2
    side = pairs // 3 if form == "arvid" else 3 * pairs // 8
    sizes = (pairs - 2 * side, side, side)
    angles = [
        coordinates[:, axis, None].float() * frequencies(num, coordinates.device)
        for axis, num in enumerate(sizes)
    ]
    # The angle of pair i stands at dimensions i and i + E/2, as `rotate` needs it.
    angle = torch.cat([*angles, *angles], dim=-1)  # (N, E)
    return angle.cos(), angle.sin()


class RotaryTable(nn.Module):
    """Rotary embeddings of the positions of a sequence; for `coordinates` (N, 3) see `rotation`. They are not saved."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, coordinates: Int[Tensor, "n 3"], head_dim: int, form: CodeForm = "arvid"
    ) -> None:
        super().__init__()
        cos, sin = rotation(coordinates, head_dim, form)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, start: int, end: int) -> Rotation:
        """Rotary embeddings of the positions start..end-1."""
        return self.cos[start:end], self.sin[start:end]


class RotaryGrid(RotaryTable):
    """Rotary embeddings of a sequence of context tokens, at the times -S..-1, and of a grid of tokens (t, h, w)."""

    def __init__(
        self, num_context: int, grid: TokenGrid, head_dim: int, form: CodeForm = "arvid"
    ) -> None:
        context = torch.zeros(num_context, 3, dtype=torch.long, device="cpu")
        context[:, 0] = torch.arange(-num_context, 0, device="cpu")
        axes = [torch.arange(size, device="cpu") for size in (grid.t, grid.h, grid.w)]
        super().__init__(torch.cat([context, torch.cartesian_prod(*axes)]), head_dim, form)


def rotation_of(all_positions: Rotation, ids: Int[Tensor, "b k"]) -> Rotation:
    """Rotary embeddings (B, 1, K, E) of different positions in each clip, out of those of all positions (N, E)."""
    cos, sin = all_positions
    return cos[ids][:, None], sin[ids][:, None]


def rotate(x: Float[Tensor, "b h n e"], by: Rotation) -> Float[Tensor, "b h n e"]:
    """Rotate queries or keys by their positions' rotary embeddings."""
    cos, sin = by
    # Each pair (a, b) becomes (a cos - b sin, b cos + a sin).
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


class ScalarEmbedding(nn.Module):
    """Scalars (...) -> (..., D): sine-cosine embedding and a two-layer MLP."""

    def __init__(self, dim: int, form: CodeForm = "arvid") -> None:
        super().__init__()
        self.form: CodeForm = form
        self.project = nn.Linear(SCALAR_CODE_DIM, dim)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value: Tensor) -> Tensor:
        code = scalar_code(value, form=self.form).to(self.project.weight.dtype)
        out: Tensor = self.mlp(self.project(code))
        return out
