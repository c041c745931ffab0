"""Encoder and decoder of Open-MAGVIT2's video tokenizer (arXiv 2409.04410).

Modules have the names of the published tensors, without the module `conv_1` that contains each published convolution.
Convolutions are causal: they pad the front of a clip with zeros. Norms are not causal: their statistics are over all
frames. Each level of the decoder begins with a norm whose scale and shift depend on all codes of the clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Triple = tuple[int, int, int]

STRIDES: tuple[Triple, ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
"""(frames, rows, columns) by which the grid shrinks after each level of the encoder but the last."""
EPS = 1e-6


class CausalConv3d(nn.Conv3d):
    """Causal convolution over (B, C, T, H, W), padded with zeros. Each axis becomes ceil(length / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: Triple = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        side = kernel // 2
        super().__init__(in_channels, out_channels, kernel, stride, (0, side, side), bias=bias)
        self.front = kernel - 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, self.front, 0)))


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution without bias, twice, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int) -> None:
        super().__init__()
        same = in_channels == out_channels
        self.norm1 = nn.GroupNorm(num_groups, in_channels, EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels, bias=False)
        self.nin_shortcut = (
            nn.Identity() if same else CausalConv3d(in_channels, out_channels, kernel=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        skipped: Tensor = self.nin_shortcut(x)
        return y + skipped


class AdaptiveNorm(nn.GroupNorm):
    """Group norm whose scale and shift are linear in the codes' standard deviation and mean over the whole clip.

    The standard deviation of a single code is not defined: the result is NaN.
    """

    def __init__(self, code_channels: int, channels: int, *, num_groups: int) -> None:
        super().__init__(num_groups, channels, EPS, affine=False)
        self.gamma = nn.Linear(code_channels, channels)
        self.beta = nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]
        values = codes.flatten(2)  # (B, bits, t·h·w)
        scale = self.gamma((values.var(-1) + EPS).sqrt())
        shift = self.beta(values.mean(-1))
        y: Tensor = super().forward(x)
        return scale[..., None, None, None] * y + shift[..., None, None, None]


class Upsample(nn.Module):
    """A convolution, whose channels are then rearranged into a finer grid.

    If it doubles frames, the second frame is dropped: T becomes 2 T - 1.
    """

    def __init__(self, channels: int, factors: Triple) -> None:
        super().__init__()
        self.factors = factors
        self.conv1 = CausalConv3d(channels, channels * math.prod(factors))

    def forward(self, x: Tensor) -> Tensor:
        ft, fh, fw = self.factors
        x = rearrange(
            self.conv1(x), "b (ft fh fw c) t h w -> b c (t ft) (h fh) (w fw)", ft=ft, fh=fh, fw=fw
        )
        return torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2) if ft > 1 else x


def _blocks(widths: list[int], num_groups: int) -> nn.Sequential:
    """One residual block from each width of a list to the next."""
    return nn.Sequential(*(ResidualBlock(a, b, num_groups=num_groups) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to (B, bits, (T - 1) // 4 + 1, H // 8, W // 8)."""

    def __init__(
        self, channels: Sequence[int], bits: int, *, num_blocks: int, num_groups: int
    ) -> None:
        super().__init__()
        width_before = channels[0]
        self.conv_in = CausalConv3d(3, width_before, bias=False)
        self.down = nn.ModuleList()
        for width, stride in zip(channels, (*STRIDES, None), strict=True):
            blocks = _blocks([width_before] + [width] * num_blocks, num_groups)
            shrink = nn.Identity() if stride is None else CausalConv3d(width, width, stride=stride)
            self.down.append(nn.ModuleDict({"block": blocks, "downsample": shrink}))
            width_before = width
        self.mid_block = _blocks([width_before] * (num_blocks + 1), num_groups)
        self.norm_out = nn.GroupNorm(num_groups, width_before, EPS)
        self.conv_out = CausalConv3d(width_before, bits, kernel=1)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(video)
        for level in self.down:
            x = level["downsample"](level["block"](x))  # type: ignore[index]
        y: Tensor = self.conv_out(F.silu(self.norm_out(self.mid_block(x))))
        return y


class Decoder(nn.Module):
    """Codes (B, bits, t, h, w) to a video (B, 3, 4 t - 3, 8 h, 8 w), not clamped."""

    def __init__(
        self, channels: Sequence[int], bits: int, *, num_blocks: int, num_groups: int
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(bits, channels[-1])
        self.mid_block = _blocks([channels[-1]] * (num_blocks + 1), num_groups)
        self.up = nn.ModuleList()
        self.adaptive = nn.ModuleList()
        # The published index of a level counts from pixels to latents. `forward` goes through the levels backwards.
        widths_before = (*channels[1:], channels[-1])
        for width, before, stride in zip(channels, widths_before, (None, *STRIDES), strict=True):
            self.adaptive.append(AdaptiveNorm(bits, before, num_groups=num_groups))
            blocks = _blocks([before] + [width] * num_blocks, num_groups)
            grow = nn.Identity() if stride is None else Upsample(width, stride)
            self.up.append(nn.ModuleDict({"block": blocks, "upsample": grow}))
        self.norm_out = nn.GroupNorm(num_groups, channels[0], EPS)
        self.conv_out = CausalConv3d(channels[0], 3)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(codes))
        for level, norm in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = level["upsample"](level["block"](norm(x, codes)))  # type: ignore[index]
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y
