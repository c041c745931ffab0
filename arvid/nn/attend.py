"""The attention formula, computed by whichever exact kernel suits mask, device and length.

| mask | GPU | CPU |
|---|---|---|
| none | torch's scaled_dot_product_attention (SDPA) | SDPA in float32 |
| blocks of one position | SDPA's causal kernel | the same in float32; in bf16 as below |
| blocks, padding | FlexAttention, which skips what is hidden (without Triton: as for a tensor) | as for a tensor |
| a tensor | SDPA | SDPA in float32; in bf16 up to 512 positions plain products of matrices |

SDPA's kernel for CPUs takes up to eight times as long in bf16 as in float32, most of all with short sequences.
B batch, N queries, M keys, E numbers of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

SHORT = 512
"""Up to so many positions plain products are faster in bf16 on CPUs; their memory grows with the square."""


class BlockCausal:
    """A query sees its own block and all before it, but no padding (save itself: a row that sees nothing has no mean).

    What kernels want to know is worked out once, so keep the object for all layers and steps.

    Args:
        blocks: block of each position; they do not fall.
        first: positions of the first block, if all later ones are of one position: then the causal kernel serves.
        padding: True where one of the first P positions is padding.
    """

    def __init__(
        self,
        blocks: Int[Tensor, " n"],
        *,
        first: int | None = None,
        padding: Bool[Tensor, "b p"] | None = None,
    ) -> None:
        self.blocks = blocks
        self.first = first
        self.padding = padding
        self._visible: Tensor | None = None
        self._dense: Tensor | None = None
        self._flex: Any = None

    def with_padding(self, padding: Bool[Tensor, "b p"] | None) -> BlockCausal:
        """The same blocks, what is known of them included, with padding."""
        if padding is None:
            return self
        other = BlockCausal(self.blocks, padding=padding)
        other._visible, other._flex = self.visible(), self._flex
        if self.blocks.is_cuda and _has_triton():
            other._flex = self.flex()
        return other

    def visible(self) -> Bool[Tensor, "n n"]:
        """True where a query (row) sees a key (column), padding not counted."""
        if self._visible is None:
            index = torch.arange(len(self.blocks), device=self.blocks.device)
            self._visible = self._rule()(0, 0, index[:, None], index[None, :])
        return self._visible

    def _rule(self) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """FlexAttention's function of (clip, head, query, key): True where the query sees the key."""
        blocks = self.blocks
        return lambda b, h, q, k: blocks[q] >= blocks[k]

    def dense(self) -> Bool[Tensor, "*b n n"]:
        """True where a query sees a key: (N, N), or (B, 1, N, N) with padding."""
        if self.padding is None:
            return self.visible()
        if self._dense is None:
            num = len(self.blocks)
            shown = ~F.pad(self.padding, (0, num - self.padding.shape[1]))  # (B, N)
            itself = torch.eye(num, dtype=torch.bool, device=shown.device)
            self._dense = self.visible() & (shown[:, None, None, :] | itself)
        return self._dense

    def flex(self) -> Any:
        """FlexAttention's mask of the blocks."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self._flex is None:
            num = len(self.blocks)
            with torch.inference_mode(False):  # a validation may make it, and training saves it
                self._flex = create_block_mask(
                    self._rule(),
                    B=None,
                    H=None,
                    Q_LEN=num,
                    KV_LEN=num,
                    device=str(self.blocks.device),
                )
        return self._flex

    def score(self) -> Any:
        """FlexAttention's change of the scores, which hides padding; None without any."""
        if self.padding is None:
            return None
        hidden = F.pad(self.padding, (0, len(self.blocks) - self.padding.shape[1]))
        return lambda score, b, h, q, k: torch.where(hidden[b, k] & (q != k), -math.inf, score)


class CleanCopy(BlockCausal):
    """Blocks that are there twice, clean and noisy. A clean one sees as `BlockCausal` does, but nothing noisy. A noisy
    one sees itself and the clean ones before it.

    Args:
        blocks: block of each position.
        noisy: True where a position is of the noisy copy.
    """

    def __init__(self, blocks: Int[Tensor, " n"], noisy: Bool[Tensor, " n"]) -> None:
        super().__init__(blocks)
        self.noisy = noisy

    def _rule(self) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        blocks, noisy = self.blocks, self.noisy

        def sees(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
            itself = (blocks[q] == blocks[k]) & (noisy[q] == noisy[k])
            return itself | (~noisy[k] & (blocks[q] > blocks[k]))

        return sees


def attend(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h m e"],
    v: Float[Tensor, "b h m e"],
    mask: Tensor | BlockCausal | None,
) -> Float[Tensor, "b h n e"]:
    """Attention with scores q·k/√E; a mask tensor is True where a query may see a key, (N, M) or (B, 1, N, M)."""
    if isinstance(mask, BlockCausal):
        if _plain(q, k):
            return _products(q, k, v, mask.dense())
        if mask.first is not None:
            return _causal(q, k, v, mask.first)
        if q.is_cuda and _has_triton():
            return _flex_attention()(q, k, v, score_mod=mask.score(), block_mask=mask.flex())
        mask = mask.dense()
    if mask is not None and _plain(q, k):
        return _products(q, k, v, mask)
    return _sdpa(q, k, v, mask)


def _plain(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Two products and a softmax, all in the type of the inputs."""
    batch, heads, num, dim = q.shape
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    if mask.ndim == 4:
        bias = bias.expand(batch, heads, -1, -1).flatten(0, 1)
    queries, keys, values = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    with torch.autocast("cpu", enabled=False):  # which would have the softmax in float32
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=dim**-0.5)
        y = scores.softmax(-1) @ values
    return y.view(batch, heads, num, dim)


def _causal(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
    """Causal but for the first positions, which see each other."""
    y = _sdpa(q, k, v, None, causal=True)
    if first <= 1:
        return y
    leading = _sdpa(q[:, :, :first], k[:, :, :first], v[:, :, :first], None)
    return torch.cat([leading, y[:, :, first:]], dim=2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    low = q.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if q.device.type != "cpu" or not low:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal
        )
    return y.to(q.dtype)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
