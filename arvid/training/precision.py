"""Warns if a training's precision is slow on this CPU."""

from __future__ import annotations

import torch

from arvid.hardware import instruction_set, product_rate

HALF = {"bf16": torch.bfloat16, "16": torch.float16}
"""Type of matrix products, by the first part of Lightning's `precision`."""
NOISE = 1.1
"""Ratios of times up to this one count as noise of the measurement."""


def slow_precision(precision: str) -> str | None:
    """A warning if training on this CPU would be faster in float32, else None.

    Args:
        precision: Lightning's option, such as "bf16-mixed".
    """
    dtype = HALF.get(precision.partition("-")[0])
    if dtype is None:
        return None
    factor = product_rate(torch.float32) / product_rate(dtype)
    if factor <= NOISE:
        return None
    return (
        f"Precision {precision} is slow on this CPU: a matrix product takes {factor:.1f} times as long as in float32 "
        f"(instructions: {instruction_set()}). Train in float32 instead: --trainer.precision 32-true."
    )
