"""A key-value cache for steps of constant shapes, as CUDA graphs need them.

A step has few queries and many keys. With one thread block for each clip and head, most of a GPU would be idle. So
PyTorch's flash attention splits the keys among thread blocks (Flash-Decoding), but only without a mask. Therefore the
keys themselves say which positions are hidden. Queries, keys and values are padded with extra dimensions. In the first
extra dimension, queries are 1, visible keys are 0 and hidden keys are `HIDDEN`. The products of queries with hidden
keys are then so small that their softmax weights are exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from arvid.nn.attention import KVCache, Mask

HIDDEN = -30_000.0
"""Added to the products of queries with hidden keys. After division by √E, with E up to 256, its exp() is 0."""
ALIGNMENT = 8
"""The padded number of dimensions is a multiple of this. Otherwise SDPA would copy the whole cache to pad it."""
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch prefers cuDNN on some GPUs. It is left out: no document says that it splits keys for several queries."""


def marks_of(visible: Bool[Tensor, "*b 1 1 m"]) -> Float[Tensor, "*b 1 m"]:
    """The marks of a cache's positions: 0 for visible ones, `HIDDEN` for others."""
    return torch.where(visible[:, 0], 0.0, HIDDEN)


class StaticKVCache(KVCache):
    """A cache that can also be written at given positions and read up to a given length.

    While `slots` is None, it is an ordinary cache: the first positions are added with `attend` and a mask. Afterwards
    `mark` sets which of them are visible, and each step sets `slots` and `reach` before it calls `attend`.
    """

    def __init__(self, max_len: int) -> None:
        super().__init__(max_len)
        self.slots: Tensor | None = None
        """Indices (N,) of the new positions. They become visible."""
        self.reach = max_len
        """Number of positions that are read, counted from the front."""
        self._padded: list[Tensor] = []  # keys and values (B, heads, max_len, head dim + extra)

    def rewind(self, length: int) -> None:
        """Forget all but the first positions, and be an ordinary cache again."""
        super().rewind(length)
        self.slots = None
        for memory in (
            self._padded
        ):  # a weight of 0 times NaN, which an earlier clip may have left, would be NaN
            memory[:, :, length:].zero_()

    def _allocate(self, like: Tensor) -> Tensor:
        """Allocate memory with extra dimensions; returns a view without them (B, heads, max_len, head dim)."""
        batch, heads, _, dim = like.shape
        extra = ALIGNMENT - dim % ALIGNMENT  # at least 1
        self._padded.append(like.new_zeros(batch, heads, self.max_len, dim + extra))
        return self._padded[-1].narrow(3, 0, dim)

    def mark(self, marks: Float[Tensor, "*b 1 m"]) -> None:
        """Set which positions later queries see: those with a mark of 0 (see `marks_of`), and all new positions."""
        assert self._memory is not None
        self._padded[0][..., self._memory[0].shape[3]] = marks

    def attend(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n e"],
        mask: Mask | None,
    ) -> Float[Tensor, "b h n e"]:
        """Store new keys and values, and let the new queries attend to all visible positions below `reach`."""
        if self.slots is None:
            return super().attend(q, k, v, mask)
        assert mask is None, "positions are hidden by mark()"
        assert self._memory is not None
        dim, (keys, values) = q.shape[3], self._padded
        extra = keys.shape[3] - dim
        keys.index_copy_(2, self.slots, F.pad(k, (0, extra)))  # the mark of a new position is 0
        self._memory[1].index_copy_(2, self.slots, v)
        with sdpa_kernel(BACKENDS):
            y = F.scaled_dot_product_attention(
                F.pad(q, (0, extra), value=1.0),  # further extra dimensions of the keys are 0
                keys.narrow(2, 0, self.reach),
                values.narrow(2, 0, self.reach),
                scale=dim**-0.5,
            )
        return y.narrow(3, 0, dim)


def clear(caches: Sequence[StaticKVCache]) -> None:
    """Overwrite what an earlier clip has left. A hidden position has a weight of 0, but 0 times NaN is NaN."""
    if memories := [memory for cache in caches for memory in cache._padded]:
        torch._foreach_zero_(memories)
