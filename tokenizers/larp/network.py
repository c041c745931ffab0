"""Encoder and decoder of LARP (arXiv 2410.21264): transformers over the patches and the tokens of a window together.

B windows, D width. `published.py` has the published names of the tensors.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from arvid.nn.attend import attend

Triple = tuple[int, int, int]
"""Frames, rows, columns."""


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D). The projections to queries, keys and values have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (s h e) -> s b h n e", s=3, h=self.num_heads)
        y: Tensor = self.proj(rearrange(attend(q, k, v, None), "b h n e -> b n (h e)"))
        return y


class Block(nn.Module):
    """Pre-norm transformer block over (B, N, D): attention, then a feed-forward layer with GELU."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = self.mlp(self.norm2(x))
        return x + y


class Transformer(nn.Module):
    """Transformer blocks over a context and queries together. Returns the outputs at the queries (B, N, D)."""

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))

    def forward(self, context: Tensor, queries: Tensor) -> Tensor:
        whole: Tensor = self.blocks(torch.cat([context, queries], dim=1))
        return whole[:, context.shape[1] :]


class Encoder(nn.Module):
    """Windows (B, 3, T, H, W) to one vector for each token (B, num_tokens, D). The windows have a fixed size."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        patch: Triple,
        num_patches: int,
        num_tokens: int,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, dim, patch, stride=patch)
        self.register_buffer("positions", torch.zeros(num_patches, dim))
        self.queries = nn.Parameter(0.02 * torch.randn(num_tokens, dim))
        self.transformer = Transformer(dim, depth, num_heads)

    def forward(self, windows: Tensor) -> Tensor:
        x = rearrange(self.patches(windows), "b d t h w -> b (t h w) d")
        queries = self.queries.expand(len(x), -1, -1)
        y: Tensor = self.transformer(x + self.get_buffer("positions"), queries)
        return y


class Decoder(nn.Module):
    """One vector for each token (B, num_tokens, D) to windows (B, 3, T, H, W), not clamped.

    Args:
        patch: pixels of a patch.
        grid: patches of a window.
        num_tokens: tokens of a window.
    """

    def __init__(
        self, dim: int, depth: int, num_heads: int, *, patch: Triple, grid: Triple, num_tokens: int
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.register_buffer("positions", torch.zeros(num_tokens, dim))
        self.register_buffer("patch_positions", torch.zeros(grid[0] * grid[1] * grid[2], dim))
        self.patch_type = nn.Parameter(0.02 * torch.randn(dim))
        self.transformer = Transformer(dim, depth, num_heads)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.pixels = nn.Linear(dim, 3 * patch[0] * patch[1] * patch[2])

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.get_buffer("patch_positions") + self.patch_type
        x = self.transformer(
            tokens + self.get_buffer("positions"), queries.expand(len(tokens), -1, -1)
        )
        (t, h, w), (ft, fh, fw) = self.grid, self.patch
        sides = {"t": t, "h": h, "w": w, "ft": ft, "fh": fh, "fw": fw}
        pattern = "b (t h w) (ft fh fw c) -> b c (t ft) (h fh) (w fw)"
        return rearrange(self.pixels(self.norm(x)), pattern, **sides)
