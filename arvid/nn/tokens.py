"""From tokens to vectors: embedding of ids or latents, patches of a frame."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from arvid.contracts import TokenSpec


class TokenEmbedding(nn.Module):
    """Tokens (..., N) ids or (..., N, C) latents -> (..., N, D)."""

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.project: nn.Module = (
            nn.Embedding(spec.size, dim) if spec.type == "discrete" else nn.Linear(spec.size, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.project(tokens)
        return out


class PatchEmbedding(nn.Module):
    """Frames of tokens (B, h, w[, C]) -> (B, h/p · w/p, D), one vector per p x p patch in raster order.

    Latents go through one linear map of the patch (row, column, channel; the same as a strided
    convolution); ids are looked up first, with D/p² numbers each.
    """

    def __init__(self, spec: TokenSpec, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.lookup: nn.Module = nn.Identity()
        channels = spec.size
        if spec.type == "discrete":
            channels = max(dim // patch**2, 1)
            self.lookup = nn.Embedding(spec.size, channels)
        self.proj = nn.Linear(patch**2 * channels, dim)

    def forward(self, frame: Tensor) -> Tensor:
        out: Tensor = self.proj(patchify(self.lookup(frame), self.patch))
        return out


def patchify(frame: Tensor, patch: int) -> Tensor:
    """(B, h, w, C) -> (B, h/p · w/p, p·p·C), channel fastest."""
    return rearrange(frame, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int, height: int) -> Tensor:
    """Inverse of `patchify`: (B, h/p · w/p, p·p·C) -> (B, h, w, C) of `height` rows."""
    return rearrange(
        tokens, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=height // patch
    )
