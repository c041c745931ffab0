"""Self-attention with a preallocated key-value cache, and the transformer block around it.

One fused projection to queries, keys and values; torch's scaled_dot_product_attention picks the kernel.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

NormPlacement = Literal["pre", "branch", "post"]


class KVCache:
    """Keys and values of the positions seen so far: static memory, filled from the front."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.length = 0
        self._memory: Tensor | None = None  # (2, B, heads, max_len, head dim), made on first use

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, heads, N, head dim) and return views of everything stored."""
        if self._memory is None:
            batch, heads, _, dim = keys.shape
            self._memory = keys.new_empty(2, batch, heads, self.max_len, dim)
        end = self.length + keys.shape[2]
        assert end <= self.max_len, f"cache of {self.max_len} positions given {end}"
        self._memory[0, :, :, self.length : end] = keys
        self._memory[1, :, :, self.length : end] = values
        self.length = end
        return self._memory[0, :, :, :end], self._memory[1, :, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "n n"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`mask` is True where a query (row) may see a key (column); with a filled cache every new
        position sees all cached ones and each other."""
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        if cache is not None:
            k, v = cache.append(k, v)
        y = _attend(q, k, v, mask)
        out: Tensor = self.proj(rearrange(y, "b heads n d -> b n (heads d)"))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, heads, N, head dim) each -> the same; on CPUs in float32, whatever they come in."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # In bf16 torch's kernel for CPUs takes up to eight times as long, most of all with short sequences.
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return y.to(q.dtype)


class TransformerBlock(nn.Module):
    """Attention and a 4x MLP (exact GELU), each with a residual connection and one LayerNorm.

    Where the norm sits: `pre` before the branch (NBP), `branch` on its output before the residual sum
    (NOVA), `post` on the sum.
    """

    def __init__(
        self, dim: int, num_heads: int, *, norm: NormPlacement, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = norm
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        if self.norm == "pre":
            x = x + self.dropout(self.attn(self.norm1(x), mask, cache))
            return x + self.dropout(self.mlp(self.norm2(x)))
        if self.norm == "branch":
            x = x + self.dropout(self.norm1(self.attn(x, mask, cache)))
            return x + self.dropout(self.norm2(self.mlp(x)))
        x = self.norm1(x + self.dropout(self.attn(x, mask, cache)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class Transformer(nn.Module):
    """A stack of blocks; the closing norm belongs to the caller."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        norm: NormPlacement,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, norm=norm, dropout=dropout) for _ in range(depth)
        )

    def new_caches(self, max_len: int) -> list[KVCache]:
        """An empty cache for each block."""
        return [KVCache(max_len) for _ in self.blocks]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, caches: list[KVCache] | None = None
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, mask, caches[i] if caches is not None else None)
        return x


def block_causal_mask(block_ids: Tensor) -> Bool[Tensor, "n n"]:
    """True where a query's block is the key's block or a later one: (N,) ids -> (N, N)."""
    return block_ids[:, None] >= block_ids[None, :]
