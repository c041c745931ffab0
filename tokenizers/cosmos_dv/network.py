"""Encoder and decoder of Cosmos' discrete video tokenizer (arXiv 2501.03575).

Modules have the names of the published tensors, without the modules `conv3d` and `norm` that contain each published
convolution and norm. A convolution is factorized into one over rows and columns and one over frames. Everything is
causal: a convolution over frames is padded with copies of the first frame, the statistics of a norm are those of one
frame, and attention over frames sees no later frame. So the tokens of a prefix are the prefix of the tokens.

B batch, C channels, T H W frames and pixels (or positions of an inner level), t h w the token grid.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from arvid.nn.causal_conv import FrameNorm
from arvid.tokenizers.cosmos_dv.wavelet import analyse, synthesise

Triple = tuple[int, int, int]
Step = tuple[bool, bool]
"""Whether a step between levels halves (or doubles) the frames, and whether it halves (or doubles) rows and columns."""

IN_FRAME: Triple = (1, 3, 3)
OVER_FRAMES: Triple = (3, 1, 1)
POINT: Triple = (1, 1, 1)
"""Kernel sizes: (frames, rows, columns)."""
EPS = 1e-6
"""Epsilon of all norms."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the encoder and the decoder."""

    channels: tuple[int, ...]
    """Channels of the first convolution, and of each level from pixels to latents."""
    latent_channels: int
    """Channels of the latents."""
    num_blocks: int
    """Residual blocks of each level of the encoder; the decoder has one more."""
    patch: int
    """Size of the wavelet's patches in frames, rows and columns."""
    halvings: tuple[int, int]
    """How often frames, and how often rows and columns, are halved after the patches."""

    def encoder_steps(self) -> list[Step]:
        """The step after each level of the encoder but the last. The first steps halve."""
        frames, pixels = self.halvings
        return [(i < frames, i < pixels) for i in range(len(self.channels) - 2)]

    def decoder_steps(self) -> list[Step]:
        """The same for the decoder, from latents to pixels. The first step does not double the frames."""
        frames, pixels = self.halvings
        steps = []
        for i in range(len(self.channels) - 2):
            longer = 1 <= i <= frames
            steps.append((longer, longer or (i < pixels and pixels > frames)))
        return steps


class CausalConv3d(nn.Conv3d):
    """Convolution over (B, C, T, H, W) that divides T (rounded up), H and W by the stride.

    It is padded in front with copies of the first frame, and at the borders of frames with zeros. With a stride over
    rows and columns, frames are padded only after the last row and column.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, *, stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride)
        self.front = kernel[0] - 1
        side = kernel[1] // 2
        before = side if stride[1] == 1 else 0
        self.sides = (before, side, before, side)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(_repeat_first(x, self.front), self.sides))


def _repeat_first(x: Tensor, times: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, times, 0), mode="replicate") if times else x


def factorized(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution in each frame, then one over frames."""
    return nn.Sequential(
        CausalConv3d(in_channels, out_channels, IN_FRAME),
        CausalConv3d(out_channels, out_channels, OVER_FRAMES),
    )


class ResidualBlock(nn.Module):
    """Norm, SiLU and factorized convolution, twice, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        same = in_channels == out_channels
        self.norm1 = FrameNorm(1, in_channels, EPS)
        self.conv1 = factorized(in_channels, out_channels)
        self.norm2 = FrameNorm(1, out_channels, EPS)
        self.conv2 = factorized(out_channels, out_channels)
        self.nin_shortcut = (
            nn.Identity() if same else CausalConv3d(in_channels, out_channels, POINT)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        skipped: Tensor = self.nin_shortcut(x)
        return skipped + y


class Attention(nn.Module):
    """Residual attention with one head, in each frame or over the frames of each position.

    Args:
        over_frames: attend to the same position in this and earlier frames; otherwise to all positions of the frame.
    """

    def __init__(self, channels: int, *, over_frames: bool) -> None:
        super().__init__()
        self.over_frames = over_frames
        self.norm = FrameNorm(1, channels, EPS)
        self.q = CausalConv3d(channels, channels, POINT)
        self.k = CausalConv3d(channels, channels, POINT)
        self.v = CausalConv3d(channels, channels, POINT)
        self.proj_out = CausalConv3d(channels, channels, POINT)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, w = x.shape
        pattern = "(b h w) t c" if self.over_frames else "(b t) (h w) c"
        y = self.norm(x)
        q, k, v = (
            rearrange(part(y), f"b c t h w -> {pattern}") for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.over_frames)
        z: Tensor = self.proj_out(rearrange(y, f"{pattern} -> b c t h w", b=b, h=h, w=w))
        return x + z


class Downsample(nn.Module):
    """Halves rows and columns, then frames, each by the sum of a strided convolution and an average.

    T frames become (T + 1) / 2.
    """

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        self.frames, self.pixels = step
        if self.pixels:
            self.conv1 = CausalConv3d(channels, channels, IN_FRAME, stride=(1, 2, 2))
        if self.frames:
            self.conv2 = CausalConv3d(channels, channels, OVER_FRAMES, stride=(2, 1, 1))
        self.conv3 = CausalConv3d(channels, channels, POINT) if any(step) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels:
            x = self.conv1(x) + F.avg_pool3d(x, (1, 2, 2))
        if self.frames:
            x = self.conv2(x) + F.avg_pool3d(_repeat_first(x, 1), (2, 1, 1))
        y: Tensor = self.conv3(x)
        return y


class Upsample(nn.Module):
    """Doubles frames, then rows and columns, each by copies and a residual convolution. T frames become 2 T - 1."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        self.frames, self.pixels = step
        if self.frames:
            self.conv1 = CausalConv3d(channels, channels, OVER_FRAMES)
        if self.pixels:
            self.conv2 = CausalConv3d(channels, channels, IN_FRAME)
        self.conv3 = CausalConv3d(channels, channels, POINT) if any(step) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.frames:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = x + self.conv1(x)
        if self.pixels:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = x + self.conv2(x)
        y: Tensor = self.conv3(x)
        return y


def _middle(channels: int) -> nn.Sequential:
    """The blocks at the lowest resolution, between the encoder's levels and the latents."""
    attention = nn.Sequential(
        Attention(channels, over_frames=False), Attention(channels, over_frames=True)
    )
    return nn.Sequential(
        OrderedDict(
            block_1=ResidualBlock(channels, channels),
            attn_1=attention,
            block_2=ResidualBlock(channels, channels),
        )
    )


def _blocks(widths: list[int]) -> nn.Sequential:
    """One residual block from each width of a list to the next."""
    return nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to latents (B, latent_channels, t, h, w)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels, steps = sizes.channels, sizes.encoder_steps()
        self.patch = sizes.patch
        self.conv_in = factorized(3 * self.patch**3, channels[0])
        self.down = nn.ModuleList()
        for (before, width), step in zip(pairwise(channels), (*steps, None), strict=True):
            downsample = nn.Identity() if step is None else Downsample(width, step)
            blocks = _blocks([before] + [width] * sizes.num_blocks)
            self.down.append(nn.ModuleDict({"block": blocks, "downsample": downsample}))
        self.mid = _middle(channels[-1])
        self.norm_out = FrameNorm(1, channels[-1], EPS)
        self.conv_out = factorized(channels[-1], sizes.latent_channels)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(analyse(video, self.patch))
        for level in self.down:
            x = level["downsample"](level["block"](x))  # type: ignore[index]
        y: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return y


class Decoder(nn.Module):
    """Latents (B, latent_channels, t, h, w) to video (B, 3, T, H, W), not clamped."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels, steps = sizes.channels, sizes.decoder_steps()
        self.patch = sizes.patch
        self.conv_in = factorized(sizes.latent_channels, channels[-1])
        self.mid = _middle(channels[-1])
        # The published index of a level counts from pixels to latents. `forward` goes through the levels backwards.
        self.up = nn.ModuleList()
        widths_before = (*channels[2:], channels[-1])  # channels of each level's input
        for width, before, step in zip(
            channels[1:], widths_before, (None, *reversed(steps)), strict=True
        ):
            upsample = nn.Identity() if step is None else Upsample(width, step)
            blocks = _blocks([before] + [width] * (sizes.num_blocks + 1))
            self.up.append(nn.ModuleDict({"block": blocks, "upsample": upsample}))
        self.norm_out = FrameNorm(1, channels[1], EPS)
        self.conv_out = factorized(channels[1], 3 * self.patch**3)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level["upsample"](level["block"](x))  # type: ignore[index]
        return synthesise(self.conv_out(F.silu(self.norm_out(x))), self.patch)
