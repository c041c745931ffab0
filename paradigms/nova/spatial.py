"""NOVA's spatial layers: a masked autoencoder over one frame, conditioned on the frame's indicator."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import Size, TokenGrid, TokenSpec
from arvid.nn.attention import NormPlacement, Transformer
from arvid.nn.positions import grid_code
from arvid.nn.tokens import PatchEmbedding


class SpatialLayers(nn.Module):
    """Encoder over indicator and visible tokens, decoder over indicator and all tokens."""

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
    ) -> None:
        super().__init__()
        self.patch = PatchEmbedding(spec, size.dim, patch)
        self.mask_token = nn.Parameter(torch.randn(size.dim) * 0.02)
        halves = depth // 2, depth - depth // 2
        self.encoder, self.decoder = (
            Transformer(size.dim, layers, size.num_heads, norm=norm, dropout=dropout)
            for layers in halves
        )
        self.norm = nn.LayerNorm(size.dim)
        code = grid_code(grid.h // patch, grid.w // patch, size.dim)
        self.register_buffer("grid_code", code, persistent=False)

    def forward(
        self,
        indicator: Float[Tensor, "p b n d"],
        visible_tokens: Tensor,
        visible: Int[Tensor, "b k"],
        wanted: Int[Tensor, "b m"],
    ) -> Float[Tensor, "p b m d"]:
        """Hidden states that predict a frame's `wanted` tokens, for each pass of guidance.

        Args:
            indicator: indicator of the frame for each pass; the tokens are equal for all passes.
            visible_tokens: known tokens, (B, K[, p·p·C]) ids or vectors; K may be 0.
            visible: raster indices of the known tokens.
            wanted: raster indices of the tokens to predict.
        """
        passes, _, num, _ = indicator.shape
        indicator = indicator.flatten(0, 1)  # (PB, L', D)
        tokens = self.patch.vectors(visible_tokens) + self.grid_code[visible]
        encoded = self.encoder(torch.cat([indicator, tokens.repeat(passes, 1, 1)], dim=1))
        # Decoder input: the indicator, then all L positions, with encoded tokens where known and mask tokens elsewhere.
        masked = (self.mask_token + self.grid_code).to(encoded.dtype)  # (L, D)
        # scatter takes an index in the shape of the values: (PB, K, D).
        index = visible.repeat(passes, 1)[..., None].expand(-1, -1, encoded.shape[-1])
        x = masked.expand(len(indicator), -1, -1).scatter(1, index, encoded[:, num:])
        x = torch.cat([encoded[:, :num], x], dim=1)
        x = self.decoder(x, wanted=wanted.repeat(passes, 1) + num)
        out: Tensor = self.norm(x).unflatten(0, (passes, -1))
        return out
