"""Inference of metric networks: full float32, a few clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FRAMES_AT_ONCE = 64
"""Frames per forward pass: keeps the activations of I3D within about 0.5 GB."""


@torch.no_grad()
def in_chunks(
    features: Callable[[Tensor], Tensor], videos: UInt8[Tensor, "b t h w 3"], device: torch.device
) -> Float[Tensor, "b d"]:
    """Features of clips, about 64 frames at a time on `device`: memory does not grow with the batch."""
    with full_precision(device.type):
        parts = videos.split(max(1, FRAMES_AT_ONCE // videos.shape[1]))
        return torch.cat([features(clips.to(device)).float() for clips in parts])


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Full float32 inside the block: no autocast, no TF32 in CUDA convolutions and matrix products."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
