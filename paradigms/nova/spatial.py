"""NOVA's spatial layers: a masked autoencoder over one frame, led by the frame's indicator."""

from __future__ import annotations

import torch
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
    ) -> None:
        super().__init__()
        self.patch = PatchEmbedding(spec, size.dim, patch)
        self.mask_token = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.encoder = Transformer(size.dim, depth // 2, size.num_heads, norm=norm)
        self.decoder = Transformer(size.dim, depth - depth // 2, size.num_heads, norm=norm)
        self.norm = nn.LayerNorm(size.dim)
        code = grid_code(grid.h // patch, grid.w // patch, size.dim)
        self.register_buffer("grid_code", code, persistent=False)

    def forward(self, indicator: Tensor, frame: Tensor, visible: Tensor) -> Tensor:
        """Hidden states (B, L, D) of a frame's tokens.

        Args:
            indicator: (B, L', D).
            frame: (B, h, w[, C]); only its visible tokens are read.
            visible: (B, K) raster ids of the visible tokens; K may be 0.
        """
        num = indicator.shape[1]
        index = visible[..., None].expand(-1, -1, indicator.shape[-1])  # (B, K, D)
        tokens = self.patch(frame).gather(1, index) + self.grid_code[visible]
        encoded = self.encoder(torch.cat([indicator, tokens], dim=1))
        x = (
            (self.mask_token + self.grid_code).to(encoded.dtype).repeat(len(frame), 1, 1)
        )  # (B, L, D)
        x = x.scatter(1, index, encoded[:, num:])
        x = self.decoder(torch.cat([encoded[:, :num], x], dim=1))
        out: Tensor = self.norm(x[:, num:])
        return out
