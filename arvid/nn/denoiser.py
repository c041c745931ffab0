"""The denoiser: a transformer over context and latent frames, modulated by each frame's noise level (adaLN).

After DiT (arXiv 2212.09748) in FAR's form (arXiv 2503.19325): norms without parameters, RMS-normed queries and keys,
rotary embeddings over (t, h, w), tanh GELU. Different: shift, scale and gate are computed once per frame and broadcast
over its tokens; conditions are context tokens in front of the frames, or optionally part of the modulation.

B clips, P passes of guidance, S context tokens, k frames of L tokens, G = k groups or, with context, k + 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import Size, TokenGrid, TokenSpec
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import Attention, KVCache, Mask
from arvid.nn.checkpointing import checkpointed
from arvid.nn.linear import Linear
from arvid.nn.positions import CodeForm, RotaryGrid, Rotation, ScalarEmbedding
from arvid.nn.tokens import PatchEmbedding

CLEAN_TIME = -1.0
"""The time of clean frames and of the context, as the network's input. Noise levels 0 to 1 are times 0 to 1000."""


class DenoisingBlock(nn.Module):
    """x + gate·attention(modulated norm of x), then the same with an MLP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, num_heads, qk_norm=True)
        self.mlp = nn.Sequential(
            Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), Linear(4 * dim, dim)
        )

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        code: Float[Tensor, "#b g d"],
        num_context: int,
        mask: Mask | None,
        cache: KVCache | None,
        rotation: Rotation,
    ) -> Float[Tensor, "b n d"]:
        """`code` is the activated embedding of each group's noise level. Groups are the context, then each frame."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(code).chunk(6, dim=-1)
        y = affine(self.norm(x), 1 + scale1, shift1, num_context)
        y = self.attn(y, mask, cache, rotation=rotation)
        x = x + affine(y, gate1, None, num_context)
        y = self.mlp(affine(self.norm(x), 1 + scale2, shift2, num_context))
        return x + affine(y, gate2, None, num_context)


def affine(
    x: Float[Tensor, "b n d"],
    scale: Float[Tensor, "#b g d"],
    shift: Float[Tensor, "#b g d"] | None,
    num_context: int,
) -> Float[Tensor, "b n d"]:
    """x · scale + shift, with one scale and shift per group. The S context tokens are the first group."""
    if num_context:
        context, frames = x[:, :num_context], x[:, num_context:]
        first, others = (None, None) if shift is None else (shift[:, :1], shift[:, 1:])
        parts = [affine(context, scale[:, :1], first, 0)]
        if frames.shape[1]:
            parts.append(affine(frames, scale[:, 1:], others, 0))
        return torch.cat(parts, dim=1)
    grouped = x.unflatten(1, (scale.shape[1], -1))  # (B, G, L, D)
    if shift is None:
        return (grouped * scale[:, :, None]).flatten(1, 2)
    return torch.addcmul(shift[:, :, None], grouped, scale[:, :, None]).flatten(1, 2)


class Denoiser(nn.Module):
    """Noisy frames -> normed hidden states, the input of a linear output layer or a categorical head.

    Args:
        spec: format of the input tokens; its size includes MASK.
        grid: the largest grid of training.
        size: width, depth and heads.
        patch: side of the square of latents that is one token.
        num_context: S.
        in_modulation: whether the mean of the context tokens is added to the embedding of the level, as FAR does with a
            class, instead of going in front of the frames.
        form: see `arvid.nn.positions.CodeForm`.
    """

    gradient_checkpointing = False
    """Compute each block again in the backward pass (see `arvid.nn.checkpointing`)."""

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        size: Size,
        *,
        patch: int,
        num_context: int,
        in_modulation: bool,
        form: CodeForm = "arvid",
    ) -> None:
        super().__init__()
        self.in_modulation = in_modulation
        self.num_context = 0 if in_modulation else num_context
        self.frame_len = grid.tokens_per_frame // patch**2
        self.embed = PatchEmbedding(spec, size.dim, patch)
        self.time = ScalarEmbedding(size.dim, form)
        self.blocks = nn.ModuleList(
            DenoisingBlock(size.dim, size.num_heads) for _ in range(size.depth)
        )
        self.modulation = nn.Linear(size.dim, 2 * size.dim)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6, elementwise_affine=False)
        patches = TokenGrid(grid.t, grid.h // patch, grid.w // patch)
        self.rotary = RotaryGrid(self.num_context, patches, size.dim // size.num_heads, form)

    def length(self, num_frames: int) -> int:
        """Number of tokens of the context and `num_frames` frames."""
        return self.num_context + num_frames * self.frame_len

    def block_index(self, frames: Int[Tensor, " k"]) -> Int[Tensor, " n"]:
        """Block of each token in block-causal attention: 0 for the context, i + 1 for frame i."""
        of_frames = (frames + 1).repeat_interleave(self.frame_len)
        return torch.cat([of_frames.new_zeros(self.num_context), of_frames])

    def new_caches(self, num_frames: int) -> list[KVCache]:
        """An empty cache for each block, with room for the context and `num_frames` frames."""
        return [KVCache(self.length(num_frames)) for _ in self.blocks]

    def forward(
        self,
        context: Float[Tensor, "b s d"],
        frames: Tensor,
        times: Float[Tensor, "b k"],
        index: Int[Tensor, " k"],
        *,
        mask: Mask | None = None,
        caches: list[KVCache] | None = None,
        fed: bool = False,
        frame_conditions: Float[Tensor, "b k d"] | None = None,
    ) -> Float[Tensor, "b k l d"]:
        """Hidden states of the frames.

        Args:
            context: context tokens.
            frames: (B, k, h, w[, C]) noisy tokens.
            times: time of each frame, 0 to 1000, or CLEAN_TIME.
            index: index of each frame in the clip.
            mask: attention mask (new tokens, cached and new tokens).
            caches: keys and values of earlier calls; those of the new tokens are added.
            fed: whether the context is in the caches already.
            frame_conditions: embedded conditions per frame, added to all tokens of the frame.
        """
        num_context = 0 if fed else self.num_context
        x = self.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # (B, k, L, D)
        if frame_conditions is not None:
            x = x + frame_conditions[:, :, None]
        x = x.flatten(1, 2)
        if num_context:
            x = torch.cat([context, x], dim=1)
            times = F.pad(times, (1, 0), value=CLEAN_TIME)
        code = self.time(times)  # (B, G, D)
        if self.in_modulation and context.shape[1]:
            code = code + context.mean(1, keepdim=True)
        code = F.silu(code)
        codes = self._rotation(index, num_context)
        again = self.gradient_checkpointing and not caches
        if again and isinstance(mask, BlockCausal):
            mask.prepare()
        for i, block in enumerate(self.blocks):
            given = (x, code, num_context, mask, caches[i] if caches else None, codes)
            x = checkpointed(block, *given) if again else block(*given)
        shift, scale = self.modulation(code[:, -len(index) :]).chunk(2, dim=-1)
        out = affine(self.norm(x[:, num_context:]), 1 + scale, shift, 0)
        return out.unflatten(1, (len(index), -1))

    def _rotation(self, index: Int[Tensor, " k"], num_context: int) -> Rotation:
        """Rotary embeddings of the context (the first `num_context` positions) and of the tokens of frames."""

        def of(table: Tensor) -> Tensor:
            frames = table[self.num_context :].unflatten(0, (-1, self.frame_len))[index]
            return torch.cat([table[:num_context], frames.flatten(0, 1)])

        return of(self.rotary.cos), of(self.rotary.sin)


def initialise(module: nn.Module) -> None:
    """Initial weights after DiT, except that no weight matrix is 0, so that every parameter gets a gradient.

    | parameter | value |
    |---|---|
    | weights of linear maps | Xavier's uniform distribution |
    | weights of modulations, time embedding and output | N(0, 0.02²) |
    | biases | 0 |
    | embedding tables, conditions, norms | as their classes initialise them |
    """
    small = ("modulation", "time.project", "time.mlp.1", "head", "head.logits")
    for name, child in module.named_modules():
        if not isinstance(child, nn.Linear) or name.startswith(("context", "frame_conditions")):
            continue
        if name.endswith(small):
            nn.init.normal_(child.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(child.weight)
        if child.bias is not None:
            nn.init.zeros_(child.bias)
