"""Encoder and decoder of TATS' VQGAN (arXiv 2204.03638).

Modules have the names of the published tensors, without the module `conv` or `convt` that contains each published
convolution. Convolutions pad every axis on both sides, so a latent frame depends on frames before and after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
Norm = Literal["batch", "group"]

NUM_GROUPS = 32
RESAMPLING_KERNEL = 4
"""Kernel size, on all axes, of the convolutions that shrink or grow the grid."""


class SameConv3d(nn.Conv3d):
    """Convolution over (B, C, T, H, W) that divides T, H and W exactly by the stride.

    Padding copies the border. If the number of padded values is odd, the front gets one more.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride)
        self.around = _padding(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around, mode="replicate"))


class SameConvTranspose3d(nn.ConvTranspose3d):
    """Transposed convolution over (B, C, T, H, W) that multiplies T, H and W exactly by the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: Triple) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel - 1)
        self.around = _padding(kernel, stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(F.pad(x, self.around, mode="replicate"), output_size)


def _padding(kernel: int, stride: Triple) -> tuple[int, ...]:
    """Padding for `F.pad` (columns first; front and back of each axis). In total kernel - stride on each axis."""
    totals = [kernel - step for step in reversed(stride)]
    return tuple(side for total in totals for side in (total - total // 2, total // 2))


def norm(channels: int, kind: Norm) -> nn.Module:
    """A norm with the statistics of the whole clip (`group`) or of the training (`batch`, in eval mode)."""
    if kind == "group":
        return nn.GroupNorm(NUM_GROUPS, channels, 1e-6)
    return nn.BatchNorm3d(channels)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a skip connection."""

    def __init__(self, channels: int, *, kind: Norm) -> None:
        super().__init__()
        self.norm1 = norm(channels, kind)
        self.conv1 = SameConv3d(channels, channels, 3)
        self.norm2 = norm(channels, kind)
        self.conv2 = SameConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return x + y


def level_strides(strides: Sequence[int]) -> list[Triple]:
    """(frames, rows, columns) by which each level shrinks the grid: 2 on each axis, until its stride is reached."""
    counts = [int(math.log2(stride)) for stride in strides]
    levels = []
    for i in range(max(counts)):
        t, h, w = (2 if i < count else 1 for count in counts)
        levels.append((t, h, w))
    return levels


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to (B, base · 2^levels, T / st, H / sh, W / sw)."""

    def __init__(self, base: int, strides: Sequence[int], *, kind: Norm) -> None:
        super().__init__()
        self.conv_first = SameConv3d(3, base, 3)
        self.conv_blocks = nn.ModuleList()
        width = base
        for stride in level_strides(strides):
            down = SameConv3d(width, 2 * width, RESAMPLING_KERNEL, stride=stride)
            width *= 2
            block = ResidualBlock(width, kind=kind)
            self.conv_blocks.append(nn.ModuleDict({"down": down, "res": block}))
        self.final_block = nn.Sequential(norm(width, kind), nn.SiLU())
        self.out_channels = width

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_first(video)
        for level in self.conv_blocks:
            x = level["res"](level["down"](x))  # type: ignore[index]
        y: Tensor = self.final_block(x)
        return y


class Decoder(nn.Module):
    """Latent (B, base · 2^levels, t, h, w) to a video (B, 3, st · t, sh · h, sw · w), not clamped."""

    def __init__(self, base: int, strides: Sequence[int], *, kind: Norm) -> None:
        super().__init__()
        levels = level_strides(strides)
        width = base * 2 ** len(levels)
        self.final_block = nn.Sequential(norm(width, kind), nn.SiLU())
        self.conv_blocks = nn.ModuleList()
        # The published decoder uses the strides in the order of the encoder, not reversed.
        for i, stride in enumerate(levels):
            narrower = base * 2 ** (len(levels) - i)
            up = SameConvTranspose3d(width, narrower, RESAMPLING_KERNEL, stride=stride)
            blocks = {f"res{j}": ResidualBlock(narrower, kind=kind) for j in (1, 2)}
            self.conv_blocks.append(nn.ModuleDict({"up": up, **blocks}))
            width = narrower
        self.conv_last = SameConv3d(width, 3, 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.final_block(latent)
        for level in self.conv_blocks:
            x = level["res2"](level["res1"](level["up"](x)))  # type: ignore[index]
        y: Tensor = self.conv_last(x)
        return y
