"""Encoder and decoder of OmniTokenizer (arXiv 2406.09399): transformers within frames and over frames.

B batch, t h w the grid of patches, N sequence positions, D width, E dimensions of a head. The layers are those of the
released code in its order; `published.py` has the published names of the tensors. Three details are unusual, and the
trained weights rely on them. Keys and values are computed from the input before its norm. Attention outside
windows has no relative position biases, although the files contain some. The convolution before attention over frames
reads its input with the axes in the wrong order (see `Transformer`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Attended = Literal["frame", "frames"]
"""Patches that attend to each other: all patches of a frame, or the patches at one position in all frames."""
Grid = tuple[int, int, int, int]
"""B, t, h, w."""

SCALE = 8.0
"""Factor of the cosines of queries and keys before the softmax."""
THETA = 10_000.0
"""Base of the frequencies of the rotary embeddings."""


class ScaleNorm(nn.Module):
    """Layer norm over the last axis with a learned scale. The shift is a constant, 0 in the published weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.get_buffer("beta"))


class FeedForward(nn.Module):
    """Norm, a linear layer with a gate (GEGLU, arXiv 2002.05202), a linear layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 2 * hidden, bias=False)
        self.narrow = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.widen(self.norm(x)).chunk(2, dim=-1)
        y: Tensor = self.narrow(F.gelu(gate) * value)
        return y


class NearbyPatches(nn.Conv3d):
    """Depthwise convolution over (B, t, h, w, D), as a positional encoding (PEG, arXiv 2102.10882).

    It is padded with zeros. In time it is causal: its kernel covers a frame and the two frames before it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(rearrange(x, "b t h w d -> b d t h w"), (1, 1, 1, 1, 2, 0))
        return rearrange(super().forward(padded), "b d t h w -> b t h w d")


class CosineAttention(nn.Module):
    """Attention with cosines of queries and keys, which have a learned scale for each dimension of a head.

    Args:
        over: "frame" has rotary embeddings of rows and columns; "frames" is causal.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, over: Attended) -> None:
        super().__init__()
        self.num_heads, self.over = num_heads, over
        inner = num_heads * head_dim
        self.norm = ScaleNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`x` is (sequences, N, D), `size` the rows and columns of a frame."""
        parts = (self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (rearrange(part, "b n (h e) -> b h n e", h=self.num_heads) for part in parts)
        if self.over == "frame":
            rotation = frame_rotation(*size, q.shape[-1], q.device)
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        causal = self.over == "frames"
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=SCALE)
        z: Tensor = self.to_out(rearrange(y, "b h n e -> b n (h e)"))
        return z


def frame_rotation(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary embeddings of a frame's patches: unit complex numbers (rows·columns, E / 2), E a multiple of 4.

    For each frequency the angle of the column comes first, then the angle of the row.
    """
    powers = torch.arange(0, head_dim, 4, device=device).float() / head_dim
    frequencies = 1 / THETA**powers
    row, column = (
        torch.outer(axis.flatten().float(), frequencies)
        for axis in torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
    )
    angles = torch.stack([column, row], dim=-1).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of neighbouring dimensions of (B, heads, N, E) by a complex number (N, E / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class WindowAttention(nn.Module):
    """Attention in windows of `window` x `window` patches, with a learned bias for each difference of positions."""

    def __init__(self, dim: int, *, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norm = ScaleNorm(dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`x` is (frames, h·w, D), `size` the rows and columns of a frame."""
        rows, columns = (side // self.window for side in size)
        sides = {"h": rows, "w": columns, "p": self.window, "q": self.window}
        windows = rearrange(self.norm(x), "b (h p w q) d -> (b h w) (p q) d", **sides)
        q, k, v = rearrange(self.qkv(windows), "b n (s h e) -> s b h n e", s=3, h=self.num_heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias())
        y = self.proj(rearrange(y, "b h n e -> b n (h e)"))
        return rearrange(y, "(b h w) (p q) d -> b (h p w q) d", **sides)

    def bias(self) -> Tensor:
        """Biases of the attention logits (heads, window², window²), by the difference of positions."""
        side = torch.arange(self.window, device=self.relative_position_bias_table.device)
        difference = side[:, None] - side + self.window - 1  # (window, window), 0 to 2·window - 2
        # (query row, query column, key row, key column); the table has a row for each pair of differences
        index = (2 * self.window - 1) * difference[:, None, :, None] + difference[None, :, None]
        biases = self.relative_position_bias_table[index.flatten(0, 1).flatten(1)]
        return biases.permute(2, 0, 1)


class Layer(nn.Module):
    """A convolution (if `nearby`), attention and a feed-forward layer, each with a residual connection."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int, *, nearby: bool) -> None:
        super().__init__()
        self.nearby = NearbyPatches(dim) if nearby else None
        self.attention = attention
        self.mlp = FeedForward(dim, hidden)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """`x` is (B·t, h·w, D), or (B·h·w, t, D) in the transformer over frames."""
        if self.nearby is not None:
            # Over frames this reshape takes (B, h, w, t) for (B, t, h, w); the published weights need it so.
            x = x + self.nearby(x.reshape(*grid, -1)).reshape(x.shape)
        x = x + self.attention(x, grid[2:])
        y: Tensor = self.mlp(x)
        return x + y


class Transformer(nn.Module):
    """Layers over (B, t, h, w, D), within each frame or over the frames at each position, and a norm.

    In the transformer over frames, the convolutions of the layers read a tensor with the axes (B, h, w, t) as if its
    axes were (B, t, h, w). The released code does so too. So a token can depend on later frames.

    Args:
        blocks: a letter for each layer. `t` is attention over all patches, `w` is attention in windows.
        over: patches that attend to each other.
        hidden: inner width of the feed-forward layers.
    """

    def __init__(
        self,
        blocks: str,
        dim: int,
        *,
        over: Attended,
        hidden: int,
        num_heads: int,
        head_dim: int,
        window: int,
    ) -> None:
        super().__init__()
        self.over = over
        self.layers = nn.ModuleList()
        for block in blocks:
            attention = (
                WindowAttention(dim, num_heads=num_heads, window=window)
                if block == "w"
                else CosineAttention(dim, num_heads=num_heads, head_dim=head_dim, over=over)
            )
            self.layers.append(Layer(attention, dim, hidden, nearby=block == "t"))
        self.norm_out = ScaleNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        pattern = "(b t) (h w) d" if self.over == "frame" else "(b h w) t d"
        y = rearrange(x, f"b t h w d -> {pattern}")
        for layer in self.layers:
            y = layer(y, (b, t, h, w))
        return rearrange(self.norm_out(y), f"{pattern} -> b t h w d", b=b, h=h, w=w)


class Patches(nn.Module):
    """Patch embedding: frames (B, 3, T, H, W) to a vector for each patch (B, t, h, w, D)."""

    def __init__(self, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch = patch
        size = 3 * patch[0] * patch[1] * patch[2]
        self.norm_in = nn.LayerNorm(size)
        self.linear = nn.Linear(size, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        ft, fh, fw = self.patch
        pattern = "b c (t ft) (h fh) (w fw) -> b t h w (c ft fh fw)"
        x = rearrange(frames, pattern, ft=ft, fh=fh, fw=fw)
        y: Tensor = self.norm_out(self.linear(self.norm_in(x)))
        return y


class Pixels(nn.Module):
    """A vector for each patch (B, t, h, w, D) to the pixels of the patches (B, 3, T, H, W)."""

    def __init__(self, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(dim, 3 * patch[0] * patch[1] * patch[2])

    def forward(self, x: Tensor) -> Tensor:
        ft, fh, fw = self.patch
        pattern = "b t h w (c ft fh fw) -> b c (t ft) (h fh) (w fw)"
        return rearrange(self.linear(x), pattern, ft=ft, fh=fh, fw=fw)
