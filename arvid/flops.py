"""Counts the FLOPs of matrix products, convolutions and attention while code runs, on real or on fake tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]


def flop_counter() -> FlopCounterMode:
    """Torch's FLOP counter, extended by attention and packed linear layers on the CPU."""
    aten = torch.ops.aten
    known: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        known[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    return FlopCounterMode(display=False, custom_mapping=known)


def _linear_flops(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any
) -> int:
    """The backward pass has five matrix products (one recomputes the scores), the forward pass two."""
    return int(sdpa_flop_count(query, key, value)) * 5 // 2
