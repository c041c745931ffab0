"""How every network of a metric is run: in full float32, and a few clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FRAMES_AT_ONCE = 64
"""What keeps the activations of an I3D within about half a gigabyte."""


@torch.no_grad()
def in_chunks(
    features: Callable[[Tensor], Tensor], videos: UInt8[Tensor, "b t h w 3"], device: torch.device
) -> Float[Tensor, "b d"]:
    """Features of clips, some 64 frames at a time on `device`: memory does not grow with the batch."""
    with full_precision(device.type):
        parts = videos.split(max(1, FRAMES_AT_ONCE // videos.shape[1]))
        return torch.cat([features(clips.to(device)).float() for clips in parts])


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """float32 as it is written: no autocast, and no TF32 in CUDA's convolutions and products."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
