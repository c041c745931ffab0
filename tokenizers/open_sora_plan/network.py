"""Encoder and decoder of the Open-Sora-Plan autoencoder. Modules have the names of the published tensors.

The encoder's first two levels process single frames; all other layers process video. Temporal convolutions are causal:
they pad the front of a clip with copies of its first frame. But norms take their statistics over all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

IMAGE_LEVELS = 2
"""Levels of the encoder that process single frames."""
ENCODER_BLOCKS = 2
DECODER_BLOCKS = 3
"""Residual blocks per level."""
EPS = 1e-6


class CausalConv3d(nn.Conv3d):
    """Temporally causal convolution over (B, C, T, H, W), with zero padding in space.

    With stride 1 the size is unchanged. With stride 2 space is not padded, and T becomes (T - 1) // 2 + 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int],
        stride: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride)
        t, h, w = self.kernel_size
        self.front = t - 1
        self.padding = (0, h // 2, w // 2) if stride == 1 else (0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.front:
            x = F.pad(x, (0, 0, 0, 0, self.front, 0), mode="replicate")
        return super().forward(x)


def frame_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution over frames (B·T, C, H, W) that pads space as `CausalConv3d` does."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 if stride == 1 else 0)


class ResidualBlock(nn.Module):
    """Twice (norm, SiLU, convolution), plus a skip connection."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_groups: int, video: bool = True
    ) -> None:
        super().__init__()
        conv = CausalConv3d if video else frame_conv
        same = in_channels == out_channels
        self.norm1 = nn.GroupNorm(num_groups, in_channels, EPS)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, EPS)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.conv_shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        skipped: Tensor = self.conv_shortcut(x)
        return skipped + y


class FrameAttention(nn.Module):
    """Self-attention within each frame. The norm before it has statistics over all frames."""

    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(num_groups, channels, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, _ = x.shape
        frames = rearrange(self.group_norm(x), "b c t h w -> (b t) 1 (h w) c")
        attended = F.scaled_dot_product_attention(
            self.to_q(frames), self.to_k(frames), self.to_v(frames)
        )
        return x + rearrange(self.to_out(attended), "(b t) 1 (h w) c -> b c t h w", b=b, h=h)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.resnets = _blocks([channels] * 3, num_groups)
        self.attentions = nn.Sequential(FrameAttention(channels, num_groups=num_groups))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.resnets[1](self.attentions(self.resnets[0](x)))
        return y


class Downsample(nn.Module):
    """Halve rows and columns (of video, also frames) by a strided convolution, after one row and column of zeros."""

    def __init__(self, channels: int, *, video: bool) -> None:
        super().__init__()
        self.conv = (CausalConv3d if video else frame_conv)(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Double rows and columns: nearest-neighbour upsampling, then a convolution of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))
        return y


class UpsampleOverTime(nn.Module):
    """Double rows, columns and all frames except the first, T -> 2 T - 1: trilinear upsampling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[:, :, :1], x[:, :, 1:]
        grown = F.interpolate(first, scale_factor=(1, 2, 2), mode="trilinear")
        if rest.shape[2]:
            later = F.interpolate(rest, scale_factor=(2, 2, 2), mode="trilinear")
            grown = torch.cat([grown, later], dim=2)
        y: Tensor = self.conv(grown)
        return y


def _blocks(widths: list[int], num_groups: int, *, video: bool = True) -> nn.Sequential:
    """Residual blocks between consecutive widths of a list."""
    return nn.Sequential(
        *(ResidualBlock(a, b, num_groups=num_groups, video=video) for a, b in pairwise(widths))
    )


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to (B, out_channels, (T - 1) // 4 + 1, H // 8, W // 8)."""

    def __init__(self, channels: Sequence[int], out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.conv_in = frame_conv(3, channels[0], 3)
        self.down_blocks = nn.ModuleList()
        before = channels[0]
        for i, width in enumerate(channels):
            widths = [before] + [width] * ENCODER_BLOCKS
            blocks = _blocks(widths, num_groups, video=i >= IMAGE_LEVELS)
            down = nn.Sequential()
            if i + 1 < len(channels):
                down.append(Downsample(width, video=i + 1 >= IMAGE_LEVELS))
            self.down_blocks.append(nn.ModuleDict({"resnets": blocks, "downsamplers": down}))
            before = width
        self.mid_block = Middle(before, num_groups=num_groups)
        self.conv_norm_out = nn.GroupNorm(num_groups, before, EPS)
        self.conv_out = CausalConv3d(before, out_channels, 3)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(rearrange(video, "b c t h w -> (b t) c h w"))
        for i, level in enumerate(self.down_blocks):
            x = level["resnets"](x)  # type: ignore[index]
            if i + 1 == IMAGE_LEVELS:
                x = rearrange(x, "(b t) c h w -> b c t h w", b=len(video))
            x = level["downsamplers"](x)  # type: ignore[index]
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return y


class Decoder(nn.Module):
    """Latent (B, in_channels, t, h, w) to a video (B, 3, 4 t - 3, 8 h, 8 w), not clamped."""

    def __init__(self, channels: Sequence[int], in_channels: int, num_groups: int) -> None:
        super().__init__()
        before = channels[-1]
        self.conv_in = CausalConv3d(in_channels, before, 3)
        self.mid_block = Middle(before, num_groups=num_groups)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(channels)):
            blocks = _blocks([before] + [width] * DECODER_BLOCKS, num_groups)
            up = nn.Sequential()
            if i + 1 < len(channels):
                up.append(UpsampleOverTime(width) if i < 2 else Upsample(width))
            self.up_blocks.append(nn.ModuleDict({"resnets": blocks, "upsamplers": up}))
            before = width
        self.conv_norm_out = nn.GroupNorm(num_groups, before, EPS)
        self.conv_out = CausalConv3d(before, 3, 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latent))
        for level in self.up_blocks:
            x = level["upsamplers"](level["resnets"](x))  # type: ignore[index]
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return y
