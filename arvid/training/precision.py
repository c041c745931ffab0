"""Whether a training's precision suits the CPU it runs on."""

from __future__ import annotations

import torch

from arvid.hardware import instruction_set, product_rate

HALF = {"bf16": torch.bfloat16, "16": torch.float16}
"""Type of the products by the first part of Lightning's `precision`."""
NOISE = 1.1
"""A product that takes at most this many times as long may only have been disturbed."""


def slow_precision(precision: str) -> str | None:
    """What to tell a user whose training on a CPU would be faster in float32; None if it would not.

    Args:
        precision: Lightning's, such as "bf16-mixed".
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
