"""NOVA's temporal layers: from the frames so far to an indicator of the next frame.

Input blocks: the begin-of-video (BOV) block, then the latent frames 0..t-1; the output at block t is about
frame t. Context and BOV see each other, a frame's block sees itself and all blocks before.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from arvid.contracts import Size, TokenGrid, TokenSpec
from arvid.nn.attention import KVCache, NormPlacement, Transformer, block_causal_mask
from arvid.nn.positions import ScalarEmbedding, grid_code
from arvid.nn.tokens import PatchEmbedding

ScaleShift = int | Literal["full", "off"]


class ScalingShift(nn.Module):
    """Indicator of frame t from the first frame's output and its own: anchor · (1 + scale) + shift.

    Scale and shift come from the frame's own output through a low-rank map (rank r, no activation in
    between) or a full one. The anchor is not normalised again.
    """

    def __init__(self, dim: int, rank: int | Literal["full"]) -> None:
        super().__init__()
        self.down: nn.Module = nn.Identity()
        if rank != "full":
            self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(dim if rank == "full" else rank, 2 * dim)

    def forward(self, anchor: Tensor, current: Tensor) -> Tensor:
        scale, shift = self.up(self.down(nn.functional.silu(current))).chunk(2, dim=-1)
        return anchor * (1 + scale) + shift


class TemporalLayers(nn.Module):
    """Block-causal layers over context, BOV and coarse patches of the frames."""

    grid_code: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        size: Size,
        *,
        depth: int,
        patch: int,
        norm: NormPlacement,
        scale_shift: ScaleShift,
    ) -> None:
        super().__init__()
        self.trained_frames = grid.t
        self.num_tokens = grid.tokens_per_frame // patch**2
        self.patch = PatchEmbedding(spec, size.dim, patch)
        self.bov = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.time = nn.Sequential(ScalarEmbedding(size.dim), nn.LayerNorm(size.dim))
        self.layers = Transformer(size.dim, depth, size.num_heads, norm=norm)
        self.norm = nn.LayerNorm(size.dim)
        self.scaling_shift = None if scale_shift == "off" else ScalingShift(size.dim, scale_shift)
        code = grid_code(grid.h // patch, grid.w // patch, size.dim)
        self.register_buffer("grid_code", code, persistent=False)

    def forward(self, context: Tensor, frames: Tensor | None, num_frames: int) -> Tensor:
        """Indicators (B, k + 1, L, D) of the frames up to the one after `frames` (B, k, h, w[, C]).

        `num_frames` is the length of the whole clip, over which the time code is stretched.
        """
        blocks = self._embed_blocks(context, frames, num_frames)  # (B, k + 1, L, D)
        x = torch.cat([context, blocks.flatten(1, 2)], dim=1)
        x = self.layers(x, self._mask(context.shape[1], blocks.shape[1], x.device))
        out = self.norm(x[:, context.shape[1] :]).unflatten(1, (-1, self.num_tokens))
        if frames is None:
            return out
        return torch.cat([out[:, :1], self.indicator(out[:, :1], out[:, 1:])], dim=1)

    def step(
        self,
        context: Tensor,
        frame: Tensor | None,
        index: int,
        num_frames: int,
        caches: list[KVCache],
    ) -> Tensor:
        """Normed output (B, L, D) of block `index`, fed with the frame before it (None: BOV)."""
        block = self.bov.expand(len(context), self.num_tokens, -1)
        if frame is not None:
            block = self.patch(frame)
        x = block + self._codes(torch.tensor([index], device=context.device), num_frames)[0]
        if index == 0:
            x = torch.cat([context, x], dim=1)
        out: Tensor = self.norm(self.layers(x, caches=caches)[:, -self.num_tokens :])
        return out

    def indicator(self, anchor: Tensor, current: Tensor) -> Tensor:
        """Indicator (B, L, D) of a later frame from the first frame's output and its own."""
        return current if self.scaling_shift is None else self.scaling_shift(anchor, current)

    def _embed_blocks(self, context: Tensor, frames: Tensor | None, num_frames: int) -> Tensor:
        blocks = self.bov.expand(len(context), 1, self.num_tokens, -1)
        if frames is not None:
            patches = self.patch(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            blocks = torch.cat([blocks, patches], dim=1)
        index = torch.arange(blocks.shape[1], device=context.device)
        return blocks + self._codes(index, num_frames)

    def _codes(self, index: Tensor, num_frames: int) -> Tensor:
        """Position codes (T, L, D); times are stretched so that any clip spans the trained length."""
        time = self.time(index * (self.trained_frames / num_frames))  # (T, D)
        return time[:, None] + self.grid_code

    def _mask(self, num_context: int, num_blocks: int, device: torch.device) -> Tensor:
        blocks = torch.arange(num_blocks, device=device).repeat_interleave(self.num_tokens)
        return block_causal_mask(torch.cat([blocks.new_zeros(num_context), blocks]))
