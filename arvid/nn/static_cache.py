"""A key-value cache for steps of constant shapes, as CUDA graphs need them.

A step has few queries and many keys. With one thread block for each clip and head, most of a GPU would be idle. Then
PyTorch's flash attention splits the keys among thread blocks (Flash-Decoding), but it takes no mask. So the keys
themselves say which positions are hidden: keys and values have more dimensions than the heads. In the first of these,
queries hold 1, visible keys 0, and hidden keys `HIDDEN`. The softmax weight of a hidden key is then exactly 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from arvid.nn.attention import KVCache, Mask

HIDDEN = -30_000.0
"""Added to the products of queries with hidden keys. After division by √E, with E up to 256, exp() of it is 0."""
ALIGNMENT = 8
"""Flash attention needs a multiple of this as the number of dimensions; otherwise SDPA copies the whole cache."""
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN, which PyTorch prefers on some GPUs: no statement was found that it splits keys for several queries."""


def marks_of(visible: Bool[Tensor, "*b 1 1 m"]) -> Float[Tensor, "*b 1 m"]:
    """0 for visible positions, `HIDDEN` for others."""
    return torch.where(visible[:, 0], 0.0, HIDDEN)


class StaticKVCache(KVCache):
    """A cache that can also be written at given positions and read up to a given length.

    While `slots` is None, it is an ordinary cache: the first positions are fed that way, with a mask. Afterwards `mark`
    says which of them are visible, and each step sets `slots` and `reach`.
    """

    def __init__(self, max_len: int) -> None:
        super().__init__(max_len)
        self.slots: Tensor | None = None
        """Indices (N,) of the new positions. They become visible."""
        self.reach = max_len
        """Number of positions that are read, counted from the front."""
        self._padded: list[Tensor] = []  # keys and values (B, heads, max_len, head dim + more)

    def rewind(self, length: int) -> None:
        """Forget all but the first positions, and be an ordinary cache again."""
        super().rewind(length)
        self.slots = None

    def _allocate(self, like: Tensor) -> Tensor:
        """Memory with more dimensions; returns the view of the head's dimensions."""
        batch, heads, _, dim = like.shape
        more = ALIGNMENT - dim % ALIGNMENT
        self._padded.append(like.new_zeros(batch, heads, self.max_len, dim + more))
        return self._padded[-1].narrow(3, 0, dim)

    def mark(self, marks: Float[Tensor, "*b 1 m"]) -> None:
        """Let later queries see the positions with a mark (see `marks_of`) of 0, and new ones, but no others."""
        assert self._memory is not None
        hidden = marks[..., None] != 0
        for memory in self._padded:  # of an earlier clip; a weight of 0 times NaN would be NaN
            memory.masked_fill_(hidden, 0.0)
        self._padded[0][..., self._memory[0].shape[3]] = marks

    def attend(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n e"],
        mask: Mask | None,
    ) -> Float[Tensor, "b h n e"]:
        """Store new keys and values; attention of the new queries to all visible positions within `reach`."""
        if self.slots is None:
            return super().attend(q, k, v, mask)
        assert mask is None, "positions are hidden by mark()"
        assert self._memory is not None
        dim, (keys, values) = q.shape[3], self._padded
        more = keys.shape[3] - dim
        keys.index_copy_(2, self.slots, F.pad(k, (0, more)))
        self._memory[1].index_copy_(2, self.slots, v)
        with sdpa_kernel(BACKENDS):
            y = F.scaled_dot_product_attention(
                F.pad(q, (0, more), value=1.0),
                keys.narrow(2, 0, self.reach),
                values.narrow(2, 0, self.reach),
                scale=dim**-0.5,
            )
        return y.narrow(3, 0, dim)
