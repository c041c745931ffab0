"""Haar wavelets over frames, rows and columns: the first layer of Cosmos' encoder and the last of its decoder.

Each level halves the three axes and turns C channels into 8 C. Each axis is split into a band of means (a + b) / 2 and
a band of differences (a - b) / 2 of neighbours. The band of an axis is a binary digit of the channel, frames first.
"""

from __future__ import annotations

import torch
from torch import Tensor

FRAMES, ROWS, COLUMNS = 2, 3, 4
"""Axes of (B, C, T, H, W)."""


def analyse(video: Tensor, patch: int) -> Tensor:
    """Bands (B, C·patch³, (T - 1) / patch + 1, H / patch, W / patch) of a clip (B, C, T, H, W).

    `patch` is a power of two. The first frame is repeated, so that it fills a patch by itself.
    """
    first = video[:, :, :1].expand(-1, -1, patch - 1, -1, -1)
    bands = torch.cat([first, video], dim=FRAMES)
    while patch > 1:
        parts = [bands]
        for axis in (FRAMES, ROWS, COLUMNS):
            parts = [band for part in parts for band in _split(part, axis)]
        bands, patch = torch.cat(parts, dim=1), patch // 2
    return bands


def synthesise(bands: Tensor, patch: int) -> Tensor:
    """The inverse of `analyse`. Copies of the first frame are dropped."""
    size = patch
    while size > 1:
        parts = list(bands.chunk(8, dim=1))
        for axis in (COLUMNS, ROWS, FRAMES):
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [_join(mean, difference, axis) for mean, difference in pairs]
        bands, size = parts[0], size // 2
    return bands[:, :, patch - 1 :]


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    a, b = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return (a + b) / 2, (a - b) / 2


def _join(mean: Tensor, difference: Tensor, axis: int) -> Tensor:
    return torch.stack([mean + difference, mean - difference], dim=axis + 1).flatten(axis, axis + 1)
