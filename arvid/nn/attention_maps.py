"""Attention weights for figures. Fused kernels do not return them, so they are computed separately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arvid.nn.attend import BlockCausal
from arvid.nn.attention import Attention, Mask, Transformer
from arvid.nn.positions import Rotation, rotate


@torch.no_grad()
def attention_weights(
    attention: Attention,
    x: Float[Tensor, "b n d"],
    mask: Mask | None = None,
    rotation: Rotation | None = None,
) -> Float[Tensor, "b heads n n"]:
    """Weight of each key (column) for each query (row), in float32; rows sum to 1."""
    q, k, _ = attention._project(x, None)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        seen = mask.dense() if isinstance(mask, BlockCausal) else mask
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)


@contextmanager
def recording(transformer: Transformer) -> Iterator[list[Float[Tensor, "n n"]]]:
    """Inside the block, each layer's call appends its attention weights, averaged over clips and heads.

    Only calls for whole sequences (no cache, no selected queries) are allowed.
    """
    maps: list[Tensor] = []

    def record(attention: Any, given: tuple[Any, ...]) -> None:
        x, mask, cache, queries, rotation, _ = given
        whole = cache is None and queries is None
        assert whole, "only calls for whole sequences are recorded"
        maps.append(attention_weights(attention, x, mask, rotation).mean((0, 1)).cpu())

    layers = [part for part in transformer.modules() if isinstance(part, Attention)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
