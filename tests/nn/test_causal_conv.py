"""The shared backbone: published size and stage shapes, causality, depth-to-space order, padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.nn.causal_conv import (
    PUBLISHED,
    Backbone,
    CausalConv3d,
    CausalDecoder,
    CausalEncoder,
    DepthToSpace,
    FrameNorm,
    ResidualUnit,
    Swish,
)

TINY = Backbone(
    base=4,
    multipliers=(1, 1, 2),
    strides=((1, 2, 2), (2, 2, 2)),
    num_units=1,
    num_mid_units=1,
    num_groups=2,
)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomised(module: nn.Module) -> nn.Module:
    """Weights away from their special initial values, so that no layer is the identity by accident."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder, decoder = CausalEncoder(PUBLISHED, 6), CausalDecoder(PUBLISHED, 6)
    assert num_parameters(encoder) == 144_886_790
    assert num_parameters(decoder) == 225_485_315
    assert len(encoder.layers) == 27
    assert len(decoder.layers) == 30


def stage_shapes(layers: nn.Sequential, x: Tensor) -> list[tuple[int, ...]]:
    """Each new shape (C, T, H, W) that the layers go through."""
    shapes: list[tuple[int, ...]] = []
    for layer in layers:
        x = layer(x)
        if tuple(x.shape[1:]) not in shapes[-1:]:
            shapes.append(tuple(x.shape[1:]))
    return shapes


def test_published_stages() -> None:
    with torch.device("meta"):
        encoder, decoder = CausalEncoder(PUBLISHED, 6), CausalDecoder(PUBLISHED, 6)
        video, latent = torch.empty(1, 3, 17, 128, 128), torch.empty(1, 6, 5, 16, 16)
    assert stage_shapes(encoder.layers, video) == [
        (128, 17, 128, 128),
        (128, 17, 64, 64),
        (256, 17, 64, 64),
        (256, 9, 32, 32),
        (256, 5, 16, 16),
        (512, 5, 16, 16),
        (6, 5, 16, 16),
    ]
    assert stage_shapes(decoder.layers, latent) == [
        (512, 5, 16, 16),
        (4096, 5, 16, 16),
        (512, 9, 32, 32),
        (256, 9, 32, 32),
        (2048, 9, 32, 32),
        (256, 17, 64, 64),
        (1024, 17, 64, 64),
        (256, 17, 128, 128),
        (128, 17, 128, 128),
        (3, 17, 128, 128),
    ]


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: ResidualUnit(128, 128, num_groups=32), 885_760),
        (lambda: ResidualUnit(128, 256, num_groups=32), 2_688_896),
        (lambda: ResidualUnit(512, 256, num_groups=32), 5_442_560),
        (lambda: CausalConv3d(3, 128), 10_496),
        (lambda: nn.Sequential(FrameNorm(32, 512), Swish(512)), 1_536),
    ],
)
def test_published_layers(make: object, parameters: int) -> None:
    assert callable(make)
    with torch.device("meta"):
        assert num_parameters(make()) == parameters


def test_conv_repeats_the_first_frame_into_the_past_and_the_border_outwards() -> None:
    conv = CausalConv3d(2, 3, stride=(2, 2, 2))
    x = torch.randn(1, 2, 5, 4, 4)
    past = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
    padded = F.pad(past, (1, 1, 1, 1, 0, 0), mode="replicate")
    assert conv(x).shape == (1, 3, 3, 2, 2)
    torch.testing.assert_close(conv(x), conv.conv(padded))


def test_norm_takes_each_frame_by_itself() -> None:
    norm = FrameNorm(2, 4)
    x = torch.randn(2, 4, 3, 5, 5)
    expected = torch.stack([F.group_norm(x[:, :, t], 2) for t in range(3)], dim=2)
    torch.testing.assert_close(norm(x), expected)


def test_swish_starts_as_silu_and_learns_its_slope() -> None:
    swish = Swish(2)
    x = torch.randn(1, 2, 1, 3, 3, requires_grad=True)
    torch.testing.assert_close(swish(x), F.silu(x))
    with torch.no_grad():
        swish.slope.fill_(2.0)
    torch.testing.assert_close(swish(x), x * torch.sigmoid(2 * x))
    swish(x).sum().backward()
    assert swish.slope.grad is not None
    assert swish.slope.grad.abs().min() > 0


def test_depth_to_space_order_and_dropped_frame() -> None:
    x = torch.arange(2 * 2 * 2 * 3).float().view(1, 24, 1, 1, 1)
    y = DepthToSpace((2, 2, 2))(x)
    assert y.shape == (1, 3, 1, 2, 2)
    for row in range(2):
        for column in range(2):  # channel = ((frame·2 + row)·2 + column)·3 + c; frame 0 is dropped
            expected = [((1 * 2 + row) * 2 + column) * 3 + c for c in range(3)]
            assert y[0, :, 0, row, column].tolist() == expected


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_prefixes_agree(frames: int) -> None:
    config = Backbone(
        base=4, multipliers=(1, 2, 2), strides=((2, 2, 2), (2, 1, 2)), num_groups=2, num_units=1
    )
    encoder, decoder = randomised(CausalEncoder(config, 5)), randomised(CausalDecoder(config, 5))
    video = torch.randn(2, 3, 13, 8, 8)
    with torch.no_grad():
        latent = encoder(video)
        assert latent.shape == (2, 5, 4, 4, 2)
        num_latents = 1 + (frames - 1) // 4
        torch.testing.assert_close(
            encoder(video[:, :, :frames]), latent[:, :, :num_latents], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            decoder(latent[:, :, :num_latents]),
            decoder(latent)[:, :, :frames],
            atol=1e-5,
            rtol=1e-5,
        )


def test_later_frames_change_nothing_earlier() -> None:
    encoder = randomised(CausalEncoder(TINY, 4))
    video = torch.randn(1, 3, 5, 8, 8)
    changed = video.clone()
    changed[:, :, 3:] += 1
    with torch.no_grad():
        before, after = encoder(video), encoder(changed)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2], atol=1e-6, rtol=0)
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-3


def test_stays_channels_last() -> None:
    encoder, decoder = CausalEncoder(TINY, 4), CausalDecoder(TINY, 4)
    x = torch.randn(2, 3, 5, 16, 16)
    for layer in [*encoder.layers, *decoder.layers]:
        x = layer(x)
        assert x.is_contiguous(memory_format=torch.channels_last_3d), layer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multipliers": (1, 2), "strides": ()}, "one stride fewer"),
        ({"strides": ((4, 2, 2), (2, 2, 2), (2, 2, 2))}, "1 or 2"),
        ({"base": 48}, "multiples of num_groups"),
    ],
)
def test_impossible_backbones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(**arguments)
