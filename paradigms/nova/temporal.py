"""NOVA's temporal layers: from earlier frames to an indicator of the next frame.

Input blocks: the begin-of-video (BOV) block, then latent frames 0..t-1. The output at block t belongs to frame t.
Context and BOV see each other; a frame's block sees itself and all earlier blocks.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import Size, TokenGrid, TokenSpec
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import KVCache, NormPlacement, Transformer
from arvid.nn.positions import ScalarEmbedding, grid_code
from arvid.nn.tokens import PatchEmbedding, patchify

ScaleShift = int | Literal["full", "off"]


class ScalingShift(nn.Module):
    """Indicator of frame t from the first frame's output (anchor) and its own: anchor · (1 + scale) + shift.

    A low-rank map (rank r, without activation in between) or a full map of the frame's own output gives scale and
    shift. The anchor is not normalised again.
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
    """Layers over context, BOV and coarse patches of the frames.

    Times of any clip are scaled to `base_frames`. `causal=False` is the paper's ablation without temporal
    autoregression: the whole clip is one input with full attention, and the BOV vector replaces unknown tokens.
    """

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
        dropout: float,
        scale_shift: ScaleShift,
        base_frames: int,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.base_frames = base_frames
        self.causal = causal
        self.num_tokens = grid.tokens_per_frame // patch**2
        self.patch = PatchEmbedding(spec, size.dim, patch)
        self.bov = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.time = nn.Sequential(ScalarEmbedding(size.dim), nn.LayerNorm(size.dim))
        self.layers = Transformer(size.dim, depth, size.num_heads, norm=norm, dropout=dropout)
        self.norm = nn.LayerNorm(size.dim)
        self.scaling_shift = None if scale_shift == "off" else ScalingShift(size.dim, scale_shift)
        self._last_mask: tuple[object, BlockCausal] | None = None
        code = grid_code(grid.h // patch, grid.w // patch, size.dim)
        self.register_buffer("grid_code", code, persistent=False)

    def forward(
        self,
        context: Float[Tensor, "p b s d"],
        frames: Tensor | None,
        num_frames: int,
        caches: list[KVCache] | None = None,
        frame_conditions: Float[Tensor, "p b k1 d"] | None = None,
        known: Bool[Tensor, "b k h w"] | None = None,
    ) -> Float[Tensor, "p b k1 l d"]:
        """Normed outputs of the BOV block and of one block for each of the `frames`.

        Args:
            context: context of each pass of guidance: conditional, negative, and for image guidance negative again. The
                second of three passes does not see the frames.
            frames: earlier frames (B, k, h, w[, C]), or None.
            num_frames: length of the whole clip, by which times are scaled.
            caches: empty caches that keep keys and values for `step`.
            frame_conditions: embedded conditions of the frame that each block belongs to.
            known: where the frames are shown; None: everywhere.
        """
        blocks = self.bov.expand(context.shape[1], 1, self.num_tokens, -1)
        if frames is not None:
            blocks = torch.cat([blocks, self._patches(frames, known)], dim=1)
        index = torch.arange(blocks.shape[1], device=context.device)
        return self._run(context, blocks + self._codes(index, num_frames), caches, frame_conditions)

    def step(
        self,
        num_passes: int,
        frame: Tensor,
        index: int,
        num_frames: int,
        caches: list[KVCache],
        frame_condition: Float[Tensor, "p b 1 d"] | None = None,
    ) -> Float[Tensor, "p b l d"]:
        """Normed output of block `index` > 0, whose input is the previous frame (B, h, w[, C]). The rest is cached."""
        code = self._codes(torch.arange(index, index + 1, device=frame.device), num_frames)
        block = self._for_passes(self.patch(frame) + code, num_passes)  # (P, B, L, D)
        block = add_frame_conditions(block[:, :, None], frame_condition)[:, :, 0]
        out = self.norm(self.layers(block.flatten(0, 1), caches=caches))
        return out.unflatten(0, (num_passes, len(frame)))

    def whole_clip(
        self,
        context: Float[Tensor, "p b s d"],
        frames: Tensor,
        known: Tensor,
        frame_conditions: Float[Tensor, "p b t d"] | None = None,
    ) -> Float[Tensor, "p b t l d"]:
        """Indicators of all frames (B, T, h, w[, C]) from their `known` (B, T, h, w) tokens, with full attention."""
        num_frames = frames.shape[1]
        index = torch.arange(num_frames, device=context.device)
        blocks = self._patches(frames, known) + self._codes(index, num_frames)
        out = self._run(context, blocks, None, frame_conditions)
        return self.indicators(out, frame_conditions)

    def indicators(
        self,
        out: Float[Tensor, "p b k l d"],
        frame_conditions: Float[Tensor, "p b k d"] | None = None,
    ) -> Float[Tensor, "p b k l d"]:
        """Indicators of frames from the outputs: the first frame's output itself, and for later frames that output
        scaled and shifted.

        Embedded conditions per frame are also added here. Otherwise the spatial layers would only see the part that
        passes the low-rank scaling and shift.
        """
        if out.shape[2] > 1:
            anchor = out[:, :, :1]
            out = torch.cat([anchor, self.indicator(anchor, out[:, :, 1:])], dim=2)
        return add_frame_conditions(out, frame_conditions)

    def indicator(self, anchor: Tensor, current: Tensor) -> Tensor:
        """Indicator of a later frame from the first frame's output (anchor) and its own."""
        return current if self.scaling_shift is None else self.scaling_shift(anchor, current)

    def _patches(
        self, frames: Tensor, known: Bool[Tensor, "b k h w"] | None
    ) -> Float[Tensor, "b k l d"]:
        """Embedded patches of frames (B, k, h, w[, C]). The BOV vector replaces unknown tokens."""
        if known is None:
            return self.patch(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        known = known.flatten(0, 1)  # (Bk, h, w)
        patches = self.patch(frames.flatten(0, 1), known)
        # A coarse patch covers several tokens: BOV has the weight of the patch's unknown share.
        unknown = 1 - patchify(known[..., None].to(patches.dtype), self.patch.patch).mean(-1)
        patches = patches + unknown[..., None] * self.bov
        return patches.unflatten(0, frames.shape[:2])

    def _run(
        self,
        context: Float[Tensor, "p b s d"],
        blocks: Float[Tensor, "b k l d"],
        caches: list[KVCache] | None,
        frame_conditions: Float[Tensor, "p b k d"] | None,
    ) -> Float[Tensor, "p b k l d"]:
        """Normed outputs of all blocks, from one forward pass over context and blocks."""
        num_passes, batch, num_context, _ = context.shape
        num_blocks = blocks.shape[1]
        of_passes = self._for_passes(blocks, num_passes)  # (P, B, K, L, D)
        of_passes = add_frame_conditions(of_passes, frame_conditions)
        x = torch.cat([context, of_passes.flatten(2, 3)], dim=2)
        mask = None
        if self.causal and num_blocks > 1:
            mask = self._mask(num_context, num_blocks, x.device)
        x = self.layers(x.flatten(0, 1), mask, caches)[:, num_context:]
        out: Tensor = self.norm(x).view(num_passes, batch, num_blocks, self.num_tokens, -1)
        return out

    def _for_passes(
        self, blocks: Float[Tensor, "b ..."], num_passes: int
    ) -> Float[Tensor, "p b ..."]:
        """Blocks for each pass of guidance. The second of three passes has the BOV vector instead of all blocks."""
        if num_passes < 3:
            return blocks.expand(num_passes, *blocks.shape)
        return torch.stack([blocks, self.bov.to(blocks.dtype).expand_as(blocks), blocks])

    def _codes(self, index: Tensor, num_frames: int) -> Tensor:
        """Positional embeddings (T, L, D). Times are scaled so that any clip spans `base_frames`."""
        time = self.time(index / (num_frames / self.base_frames))  # (T, D)
        return time[:, None] + self.grid_code

    def _mask(self, num_context: int, num_blocks: int, device: torch.device) -> BlockCausal:
        """Block-causal mask, with context and BOV as the first block. The last mask is kept for the next call."""
        key = (num_context, num_blocks, device)
        if self._last_mask is None or self._last_mask[0] != key:
            blocks = torch.arange(num_blocks, device=device).repeat_interleave(self.num_tokens)
            blocks = torch.cat([blocks.new_zeros(num_context), blocks])
            self._last_mask = (key, BlockCausal(blocks))
        return self._last_mask[1]


def add_frame_conditions(
    blocks: Float[Tensor, "p b k l d"], frame_conditions: Float[Tensor, "p b k d"] | None
) -> Float[Tensor, "p b k l d"]:
    """The blocks plus the embedded conditions of each block's frame."""
    return blocks if frame_conditions is None else blocks + frame_conditions[:, :, :, None]
