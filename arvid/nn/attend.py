"""Exact attention by the kernel that is fastest for the mask, device and length.

| mask | GPU | CPU |
|---|---|---|
| none | torch's scaled_dot_product_attention (SDPA) | SDPA in float32 |
| blocks of one position | SDPA's causal kernel | the same in float32; in bf16 as below |
| blocks, padding | FlexAttention, which skips hidden blocks (without Triton: as a tensor) | as a tensor |
| a tensor | SDPA | SDPA in float32; in bf16, up to 512 positions, plain matrix products |

SDPA on CPUs takes up to eight times as long in bf16 as in float32, above all for short sequences.
B batch, N queries, M keys, E head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

SHORT = 512
"""Maximum number of keys for plain products (bf16 on CPUs); their memory grows with the square of the length."""


_as_on_gpu = False


@contextmanager
def kernels_of_gpus() -> Iterator[None]:
    """Inside the block, CPU tensors take the kernels of GPUs, with flash attention for FlexAttention.

    For runs on fake tensors: both store the same tensors for the backward pass. FLOPs are those of all pairs of query
    and key, although FlexAttention skips hidden blocks.
    """
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before


class BlockCausal:
    """Block-causal mask: a query sees its own block and all earlier blocks, but no padding except itself.

    (A query must see at least one key: the softmax of an empty row is NaN.) The masks for kernels are computed once,
    so use one object for all layers and steps.

    Args:
        blocks: block index of each position, non-decreasing.
        first: length of the first block, if all later blocks have one position. Then a causal kernel can be used.
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
        """The same blocks with padding. Masks that are already computed are shared."""
        if padding is None:
            return self
        other = BlockCausal(self.blocks, padding=padding)
        other._visible, other._flex = self.visible(), self._flex
        if self.blocks.is_cuda and _has_triton():
            other._flex = self.flex()
        return other

    def visible(self) -> Bool[Tensor, "n n"]:
        """True where a query (row) may see a key (column), without regard to padding."""
        if self._visible is None:
            index = torch.arange(len(self.blocks), device=self.blocks.device)
            self._visible = self._rule()(0, 0, index[:, None], index[None, :])
        return self._visible

    def _rule(self) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """FlexAttention's function of (clip, head, query, key): True where the query sees the key."""
        blocks = self.blocks
        return lambda b, h, q, k: blocks[q] >= blocks[k]

    def dense(self) -> Bool[Tensor, "*b n n"]:
        """True where a query may see a key: (N, N), or (B, 1, N, N) with padding."""
        if self.padding is None:
            return self.visible()
        if self._dense is None:
            num = len(self.blocks)
            shown = ~F.pad(self.padding, (0, num - self.padding.shape[1]))  # (B, N)
            itself = torch.eye(num, dtype=torch.bool, device=shown.device)
            self._dense = self.visible() & (shown[:, None, None, :] | itself)
        return self._dense

    def flex(self) -> Any:
        """FlexAttention's block mask, without padding (see `score`)."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self._flex is None:
            num = len(self.blocks)
            # Validation may create it in inference mode, but training saves it for the backward pass.
            with torch.inference_mode(False):
                self._flex = create_block_mask(
                    self._rule(),
                    B=None,
                    H=None,
                    Q_LEN=num,
                    KV_LEN=num,
                    device=str(self.blocks.device),
                )
        return self._flex

    def prepare(self) -> None:
        """Compute and cache the masks that `attend` reads. A compiled, checkpointed block cannot compute them."""
        if self.first is None and self.blocks.is_cuda and _has_triton():
            self.flex()
        elif self.first is None or len(self.blocks) <= SHORT:
            self.dense()

    def score(self) -> Any:
        """FlexAttention's `score_mod`, which hides padding; None without padding.

        Padding is not in the block mask, so one block mask serves all batches.
        """
        if self.padding is None:
            return None
        hidden = F.pad(self.padding, (0, len(self.blocks) - self.padding.shape[1]))
        return lambda score, b, h, q, k: torch.where(hidden[b, k] & (q != k), -math.inf, score)


class CleanCopy(BlockCausal):
    """Block-causal mask of a sequence that contains each block twice: a clean copy and a noisy copy.

    A clean block sees itself and earlier clean blocks. A noisy block sees itself and earlier clean blocks.

    Args:
        blocks: block index of each position.
        noisy: True at positions of the noisy copy.
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
    """Attention with scores q·k/√E. A mask tensor, (N, M) or (B, 1, N, M), is True where a query may see a key."""
    if isinstance(mask, BlockCausal):
        if _is_short_bf16(q, k):
            return _products(q, k, v, mask.dense())
        if mask.first is not None:
            return _causal(q, k, v, mask.first)
        if q.is_cuda and _has_triton():
            return _flex_attention()(q, k, v, score_mod=mask.score(), block_mask=mask.flex())
        if _as_on_gpu:
            return _sdpa(q, k, v, None)
        mask = mask.dense()
    if mask is not None and _is_short_bf16(q, k):
        return _products(q, k, v, mask)
    return _sdpa(q, k, v, mask)


def _is_short_bf16(q: Tensor, k: Tensor) -> bool:
    """Whether plain products are faster than SDPA."""
    return _is_on_cpu(q) and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention by two batched products and a softmax, all in the type of the inputs."""
    batch, heads, num, dim = q.shape
    # Additive mask: 0 where a query sees a key, -inf elsewhere.
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    if mask.ndim == 4:  # (B, 1, N, M) -> (B * heads, N, M), as baddbmm takes it
        bias = bias.expand(batch, heads, -1, -1).flatten(0, 1)
    queries, keys, values = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    with torch.autocast("cpu", enabled=False):  # autocast would compute the softmax in float32
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=dim**-0.5)
        y = scores.softmax(-1) @ values
    return y.view(batch, heads, num, dim)


def _causal(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
    """Causal attention, except that the first positions also see each other: they are computed again, without mask."""
    y = _sdpa(q, k, v, None, causal=True)
    if first <= 1:
        return y
    leading = _sdpa(q[:, :, :first], k[:, :, :first], v[:, :, :first], None)
    return torch.cat([leading, y[:, :, first:]], dim=2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    low = q.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if not _is_on_cpu(q) or not low:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal
        )
    return y.to(q.dtype)


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not _as_on_gpu


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
