"""Causal 3D convolutional encoder and decoder: the backbone that both of arvid's tokenizers share.

The network is that of Next-Block Prediction's tokenizer (arXiv 2502.07737, after MAGVIT-v2), at any size: the
first frame is encoded alone, then each latent frame sees the frames up to its own time and none after.
Two things keep it causal: convolutions pad time on the left only (by repeating the first frame), and group
norm takes its statistics from each frame by itself. So a clip can also go through in chunks, each layer being told
by a `StreamState` what it saw of the chunk before: the result is that of the whole clip.

Activations lie in memory with channels last: on CPUs convolutions over a few channels run up to 1.7 times as
fast that way, and no layer here needs a copy to keep it so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.nn.checkpointing import checkpointed
from arvid.ranges import at_least, between

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Size of encoder and decoder; the defaults are the published ones (370 million parameters).

    Raises UserError for numbers outside their ranges, and for stages that do not fit each other.
    """

    base: int = 128
    """Channels of the first stage."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of each stage as multiples of `base`, from pixels to latents."""
    strides: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    """(frames, rows, columns) by which the grid shrinks after each stage but the last. Each is 1 or 2."""
    num_units: int | tuple[int, ...] = 4
    """Residual units of every stage, or of each: a stage of the width before it may have none."""
    num_mid_units: int = 4
    """Residual units more at the latent's resolution."""
    num_groups: int = 32
    """Groups of each group norm; must divide the channels of every stage."""

    def __post_init__(self) -> None:
        at_least(1).require("backbone.", base=self.base, multipliers=self.multipliers)
        at_least(1).require("backbone.", num_groups=self.num_groups)
        at_least(0).require("backbone.", num_units=self.num_units, num_mid_units=self.num_mid_units)
        between(1, 2).require(
            "backbone.", strides=[step for stride in self.strides for step in stride]
        )
        if len(self.strides) != len(self.multipliers) - 1:
            raise UserError(
                f"A backbone needs one stride fewer than multipliers, "
                f"got {len(self.strides)} strides and {len(self.multipliers)} multipliers."
            )
        widths = self.channels
        if len(self.units) != len(widths):
            raise UserError(f"A backbone of {len(widths)} stages got num_units={self.num_units}.")
        if any(
            not n and {*widths[max(i - 1, 0) : i + 2]} != {widths[i]}
            for i, n in enumerate(self.units)
        ):
            raise UserError(
                f"A backbone's stage without residual units must be as wide as its neighbours, "
                f"got num_units={self.num_units} for channels {widths}."
            )
        if any(c % self.num_groups for c in self.channels):
            raise UserError(
                f"A backbone's channels {self.channels} must be multiples of num_groups={self.num_groups}."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage, from pixels to latents."""
        return tuple(self.base * multiplier for multiplier in self.multipliers)

    @property
    def units(self) -> tuple[int, ...]:
        """Residual units of each stage, from pixels to latents."""
        if isinstance(self.num_units, int):
            return (self.num_units,) * len(self.multipliers)
        return tuple(self.num_units)

    @property
    def total_stride(self) -> Triple:
        """(frames, rows, columns) of pixels behind one latent position."""
        t, h, w = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return t, h, w


PUBLISHED = Backbone()
"""The backbone of the published tokenizer."""


class StreamState:
    """State of one encoder or decoder between the chunks of one clip."""

    def __init__(self) -> None:
        self.frames: dict[nn.Module, Tensor] = {}
        """For each convolution, the last padded input frames, which the outputs of the next chunk see too."""
        self.started = False
        """Whether a chunk has been processed."""
        self._size: tuple[int, int, int] | None = None

    def check(self, chunk: Tensor) -> None:
        """Raise UserError for a chunk (B, C, T, H, W) with another batch or frame size than the first chunk."""
        size = (chunk.shape[0], chunk.shape[3], chunk.shape[4])
        self._size = self._size or size
        if size != self._size:
            raise UserError(
                f"The chunks of a stream must be alike, but (batch, rows, columns) are {size} "
                f"after {self._size}."
            )


class CausalConv3d(nn.Module):
    """Convolution without access to later frames: (B, C, T, H, W) -> (B, C', ceil(T/st), ceil(H/sh), ceil(W/sw)).

    Padding repeats the border: in time kernel - 1 copies of the first frame, in space kernel // 2 pixels on each side.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__()
        assert kernel % 2 == 1
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)
        self.conv.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - 1, 0)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        past = None if state is None else state.frames.get(self)
        padding = self.padding if past is None else (*self.padding[:4], 0, 0)
        x = F.pad(x, padding, mode="replicate")
        if past is not None:
            x = torch.cat([past, x], dim=2)
        if state is not None:
            state.frames[self] = self._seen_again(x)
        y: Tensor = self.conv(x)
        return y

    def _seen_again(self, x: Tensor) -> Tensor:
        """A copy of the last padded frames, where the first output of the next chunk begins."""
        # With a stride, output n begins at padded frame n * stride: earlier frames are not needed again.
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        num_outputs = (x.shape[2] - kernel) // stride + 1
        return x[:, :, num_outputs * stride :].clone()  # a view would keep the whole chunk


class PointwiseConv3d(nn.Module):
    """Convolution of kernel 1: (B, C, T, H, W) -> (B, C', T, H, W).

    It is computed as a matrix product over the last axis in memory; a convolution would leave that layout.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), self.conv.weight.flatten(1), self.conv.bias).movedim(
            -1, 1
        )


class FrameNorm(nn.GroupNorm):
    """Group norm with the statistics of each frame alone: (B, C, T, H, W) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)  # (B, T, C, H, W)
        return super().forward(frames.flatten(0, 1)).view_as(frames).transpose(1, 2)


class Swish(nn.Module):
    """x · sigmoid(slope · x) with one learnable slope per channel, which starts at 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.slope * x).sigmoid_()
        return x * gate


class ResidualUnit(nn.Module):
    """Twice norm, swish, convolution, and a skip connection. It is a 1x1x1 convolution if the widths differ."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            FrameNorm(num_groups, in_channels),
            Swish(in_channels),
            CausalConv3d(in_channels, out_channels),
            FrameNorm(num_groups, out_channels),
            Swish(out_channels),
        )
        self.last = CausalConv3d(out_channels, out_channels)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else PointwiseConv3d(in_channels, out_channels)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        y = x
        for layer in (*self.branch, self.last):
            y = _apply(layer, y, state)
        y = self.skip(x) + y
        return y


class DepthToSpace(nn.Module):
    """Spread channels over a finer grid: (B, rt·rh·rw·C, T, H, W) -> (B, C, T·rt - rt + 1, H·rh, W·rw).

    The first rt - 1 frames of a clip are dropped, because the first latent frame of a causal tokenizer is a single
    frame. Later chunks of a stream keep all frames.
    """

    def __init__(self, factors: Triple) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        rt, rh, rw = self.factors
        x = rearrange(x, "b (rt rh rw c) t h w -> b (t rt) (h rh) (w rw) c", rt=rt, rh=rh, rw=rw)
        dropped = 0 if state is not None and state.started else rt - 1
        return x[:, dropped:].contiguous().movedim(-1, 1)


def _apply(layer: nn.Module, x: Tensor, state: StreamState | None) -> Tensor:
    """Apply one layer. Layers that mix frames or change their number get the state."""
    timed = isinstance(layer, (CausalConv3d, ResidualUnit, DepthToSpace))
    y: Tensor = layer(x, state) if timed else layer(x)
    return y


class CausalStack(nn.Module):
    """A sequence of causal layers: the common base of encoder and decoder."""

    layers: nn.Sequential
    gradient_checkpointing: bool = False
    """Whether training stores only each layer's input, and recomputes the layer in the backward pass."""

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """Process a whole clip (B, C, T, H, W), or with a state the next chunk of the state's clip.

        Computed in the dtype of the weights. A state is for inference: gradient checkpointing ignores it.
        """
        if state is not None:
            state.check(x)
        x = x.to(next(self.parameters()).dtype)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            x = checkpointed(layer, x) if recompute else _apply(layer, x, state)
        if state is not None:
            state.started = True
        return x


def _units(channels: list[int], num_groups: int) -> list[nn.Module]:
    """Residual units with these widths: unit i maps channels[i] to channels[i + 1]."""
    return [ResidualUnit(a, b, num_groups=num_groups) for a, b in pairwise(channels)]


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """Initialise near a linear network that keeps the variance, which makes short trainings far faster.

    | parameter | start |
    |---|---|
    | convolution | normal, variance 1 / fan-in |
    | last convolution of a residual branch | a tenth of that |
    | bias | 0 |
    | norm, slope of the swish | 1 |
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            assert module.bias is not None
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            module.bias.zero_()
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.last.conv.weight.mul_(0.1)


class CausalEncoder(CausalStack):
    """Video (B, 3, T, H, W) to a latent (B, out_channels, t, h, w), where T = 1 + n·temporal stride."""

    def __init__(self, config: Backbone, out_channels: int) -> None:
        super().__init__()
        widths = config.channels
        layers: list[nn.Module] = [CausalConv3d(3, widths[0])]
        before = widths[0]
        strides = (*config.strides, None)
        for width, num_units, stride in zip(widths, config.units, strides, strict=True):
            layers += _units([before] + [width] * num_units, config.num_groups)
            if stride is not None:
                layers.append(CausalConv3d(width, width, stride=stride))
            before = width
        layers += _units([before] * (config.num_mid_units + 1), config.num_groups)
        layers += [FrameNorm(config.num_groups, before), Swish(before)]
        layers.append(PointwiseConv3d(before, out_channels))
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    @torch.no_grad()
    def start_at(self, output: Float[Tensor, " c"]) -> None:
        """Make the mean of an untrained encoder's outputs these values instead of 0."""
        head = self.layers[-1]
        assert isinstance(head, PointwiseConv3d)
        assert head.conv.bias is not None
        head.conv.bias.copy_(output)


class CausalDecoder(CausalStack):
    """Latent (B, in_channels, t, h, w) to a video (B, 3, T, H, W); the output is linear, not bounded."""

    def __init__(self, config: Backbone, in_channels: int) -> None:
        super().__init__()
        widths = config.channels
        before = widths[-1]
        layers: list[nn.Module] = [CausalConv3d(in_channels, before)]
        num_first = config.num_mid_units + config.units[-1]
        layers += _units([before] * (num_first + 1), config.num_groups)
        stages = zip(widths[-2::-1], config.units[-2::-1], config.strides[::-1], strict=True)
        for width, num_units, stride in stages:
            layers += [CausalConv3d(before, before * math.prod(stride)), DepthToSpace(stride)]
            layers += _units([before] + [width] * num_units, config.num_groups)
            before = width
        layers += [FrameNorm(config.num_groups, before), Swish(before), CausalConv3d(before, 3)]
        self.layers = nn.Sequential(*layers)
        _initialise(self)
