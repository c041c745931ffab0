"""Self-attention with a preallocated key-value cache, and the transformer block around it.

One fused projection to queries, keys and values; `arvid.nn.attend` picks the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.nn.attend import BlockCausal, attend
from arvid.nn.checkpointing import checkpointed
from arvid.nn.draws import Dropout, StochasticDepth
from arvid.nn.linear import Linear, linear
from arvid.nn.positions import Rotation, rotate, rotation_of

NormPlacement = Literal["pre", "branch", "post"]
Mask = Tensor | BlockCausal
"""Attention mask: a tensor (N, M) or (B, 1, N or 1, M), True where a query may see a key; or blocks."""


BlockStyle = Literal["gpt", "llama"]
"""gpt: LayerNorm, exact GELU and biases. llama: RMSNorm, SwiGLU and no biases."""


class KVCache:
    """Keys and values of all positions so far, in preallocated memory that is filled from the front."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.length = 0
        self._memory: tuple[Tensor, Tensor] | None = None  # (B, heads, max_len, head dim) each

    @property
    def num_bytes(self) -> int:
        """Bytes of the memory, 0 before it is needed."""
        return sum(x.numel() * x.element_size() for x in self._memory or ())

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, heads, N, head dim); return views of all stored ones."""
        if self._memory is None:
            self._memory = self._allocate(keys), self._allocate(values)
        all_keys, all_values = self._memory
        num = keys.shape[2]
        end = self.length + num
        assert end <= self.max_len, f"cache of {self.max_len} positions given {end}"
        # Slicing takes five times as long as narrow, which is noticeable in steps of one token.
        all_keys.narrow(2, self.length, num).copy_(keys)
        all_values.narrow(2, self.length, num).copy_(values)
        self.length = end
        return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)

    def rewind(self, length: int) -> None:
        """Forget all but the first positions."""
        self.length = length

    def _allocate(self, like: Tensor) -> Tensor:
        """Memory for tensors such as `like` (B, heads, N, head dim)."""
        return like.new_zeros(*like.shape[:2], self.max_len, like.shape[3])

    def attend(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n e"],
        mask: Mask | None,
    ) -> Float[Tensor, "b h n e"]:
        """Store new keys and values; attention of the new queries to all stored positions. `mask` as in `attend`."""
        keys, values = self.append(k, v)
        return attend(q, keys, values, mask)


class Attention(nn.Module):
    """Multi-head self-attention (B, N, D) -> (B, N, D).

    With `qk_norm` the queries and keys of each head are RMS-normed, with a learned scale, before they are rotated.
    """

    def __init__(
        self, dim: int, num_heads: int, *, bias: bool = True, qk_norm: bool = False
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"A width of {dim} is not a multiple of {num_heads} heads.")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)
        self.qk_norm = qk_norm
        if qk_norm:
            self.norm_q, self.norm_k = (nn.RMSNorm(dim // num_heads, eps=1e-6) for _ in "qk")

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        cache: KVCache | None = None,
        queries: Float[Tensor, "b k d"] | None = None,
        rotation: Rotation | None = None,
        query_rotation: Rotation | None = None,
    ) -> Float[Tensor, "b k d"]:
        """Attention output of all positions, or of `queries` only.

        Args:
            x: new positions.
            mask: True where a query (row) may see a key (column). None: new positions see each other and the cache.
            cache: stores the new keys and values, and provides earlier ones.
            queries: the rows of `x` whose output is needed; None: all.
            rotation: rotary embeddings of the new positions.
            query_rotation: those of the `queries`, if they are not all positions.
        """
        q, k, v = self._project(x, queries)
        if rotation is not None:
            q, k = rotate(q, query_rotation or rotation), rotate(k, rotation)
        y = attend(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def _project(self, x: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N or K, head dim), normed but not rotated."""
        if queries is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        else:
            # The fused projection has the rows of q first, then k and v: project queries and others separately.
            dim, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
            first, others = (None, None) if bias is None else (bias[:dim], bias[dim:])
            q = linear(queries, weight[:dim], first).unflatten(-1, (self.num_heads, -1))
            k, v = linear(x, weight[dim:], others).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if self.qk_norm:  # in the type of its weights, which autocast leaves in float32
            dtype = self.norm_q.weight.dtype
            q = self.norm_q(q.to(dtype)).to(v.dtype)
            k = self.norm_k(k.to(dtype)).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)). The hidden width is 8/3 of the model's, rounded up as in LLaMA."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        multiple = 256 if dim >= 1024 else 32
        hidden = -(-8 * dim // (3 * multiple)) * multiple
        self.gate_up = Linear(dim, 2 * hidden, bias=False)
        self.down = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


def build_norm(dim: int, style: BlockStyle, eps: float | None = None) -> nn.Module:
    """The norm of a style, for the blocks of a stack and for after it. Default `eps`: 1e-5 (gpt) or 1e-6 (llama)."""
    if style == "gpt":
        return nn.LayerNorm(dim, eps=1e-5 if eps is None else eps)
    return nn.RMSNorm(dim, eps=1e-6 if eps is None else eps)


def _mlp(dim: int, style: BlockStyle) -> nn.Module:
    if style == "llama":
        return SwiGLU(dim)
    return nn.Sequential(Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each with a residual connection and one norm.

    Position of the norm: `pre` before the branch (NBP), `branch` on the branch's output before the sum (NOVA), `post`
    after the sum.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        norm: NormPlacement,
        dropout: float = 0.0,
        style: BlockStyle = "gpt",
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.norm1 = build_norm(dim, style, norm_eps)
        self.attn = Attention(dim, num_heads, bias=style == "gpt")
        self.norm2 = build_norm(dim, style, norm_eps)
        self.mlp = _mlp(dim, style)
        self.dropout: nn.Module = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Mask | None = None,
        cache: KVCache | None = None,
        wanted: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, K, D) for only the `wanted` (B, K) positions."""
        # Only the wanted positions are queries, but all positions give keys and values.
        rows = None if wanted is None else gather_rows(x, wanted)
        residual = x if rows is None else rows
        turns = rotation if rotation is None or wanted is None else rotation_of(rotation, wanted)
        if self.norm == "pre":
            queries = None if rows is None else self.norm1(rows)
            x = residual + self.dropout(
                self.attn(self.norm1(x), mask, cache, queries, rotation, turns)
            )
            return x + self.dropout(self.mlp(self.norm2(x)))
        if self.norm == "branch":
            x = residual + self.dropout(
                self.norm1(self.attn(x, mask, cache, rows, rotation, turns))
            )
            return x + self.dropout(self.norm2(self.mlp(x)))
        x = self.norm1(residual + self.dropout(self.attn(x, mask, cache, rows, rotation, turns)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class Transformer(nn.Module):
    """A stack of blocks. The caller adds the final norm. For `norm_eps` see `build_norm`."""

    gradient_checkpointing = False
    """Compute each block again in the backward pass (see `arvid.nn.checkpointing`)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        norm: NormPlacement,
        dropout: float = 0.0,
        style: BlockStyle = "gpt",
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, num_heads, norm=norm, dropout=dropout, style=style, norm_eps=norm_eps
            )
            for _ in range(depth)
        )

    def new_caches(self, max_len: int) -> list[KVCache]:
        """An empty cache for each block."""
        return [KVCache(max_len) for _ in self.blocks]

    def forward(
        self,
        x: Tensor,
        mask: Mask | None = None,
        caches: list[KVCache] | None = None,
        wanted: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """`wanted` (B, K) are the positions to return. In the last block, other positions only give keys and values."""
        last = len(self.blocks) - 1
        again = self.gradient_checkpointing and caches is None
        if again and isinstance(mask, BlockCausal):
            mask.prepare()
        for i, block in enumerate(self.blocks):
            cache = caches[i] if caches is not None else None
            given = (x, mask, cache, wanted if i == last else None, rotation)
            x = checkpointed(block, *given) if again else block(*given)
        return x


def set_stochastic_depth(stacks: Sequence[Transformer], rate: float) -> None:
    """Let the blocks of a network's stacks skip their branches in training (stochastic depth, arXiv 1603.09382).

    The probability rises linearly with depth, up to `rate` at the last block.
    """
    blocks = [block for stack in stacks for block in stack.blocks]
    for i, block in enumerate(blocks, 1):
        assert isinstance(block, TransformerBlock)
        block.dropout = nn.Sequential(block.dropout, StochasticDepth(rate * i / len(blocks)))


def gather_rows(x: Float[Tensor, "b n d"], ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Row ids[b, i] of each x[b]."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))
