"""The shared backbone: published size and stage shapes, causality, depth-to-space order, padding."""

from __future__ import annotations

from itertools import islice

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
    CausalStack,
    DepthToSpace,
    FrameNorm,
    ResidualUnit,
    StreamState,
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
DEEP = Backbone(
    base=4, multipliers=(1, 2, 2), strides=((2, 2, 2), (2, 1, 2)), num_groups=2, num_units=1
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


Row = tuple[int, int, tuple[int, int, int, int]]
"""Of the published table: how many layers, their parameters, and their output's (C, T, H, W)."""
ENCODER: list[Row] = [
    (1, 10_496, (128, 17, 128, 128)),
    (4, 4 * 885_760, (128, 17, 128, 128)),
    (1, 442_496, (128, 17, 64, 64)),
    (4, 2_688_896 + 3 * 3_540_992, (256, 17, 64, 64)),
    (1, 1_769_728, (256, 9, 32, 32)),
    (4, 4 * 3_540_992, (256, 9, 32, 32)),
    (1, 1_769_728, (256, 5, 16, 16)),
    (4, 10_751_744 + 3 * 14_159_872, (512, 5, 16, 16)),
    (4, 4 * 14_159_872, (512, 5, 16, 16)),
    (2, 1_536, (512, 5, 16, 16)),
    (1, 3_078, (6, 5, 16, 16)),
]
DECODER: list[Row] = [
    (1, 83_456, (512, 5, 16, 16)),
    (8, 8 * 14_159_872, (512, 5, 16, 16)),
    (2, 56_627_200, (512, 9, 32, 32)),
    (4, 5_442_560 + 3 * 3_540_992, (256, 9, 32, 32)),
    (2, 14_157_824, (256, 17, 64, 64)),
    (4, 4 * 3_540_992, (256, 17, 64, 64)),
    (2, 7_078_912, (256, 17, 128, 128)),
    (4, 1_361_408 + 3 * 885_760, (128, 17, 128, 128)),
    (2, 384, (128, 17, 128, 128)),
    (1, 10_371, (3, 17, 128, 128)),
]


@pytest.mark.parametrize(
    ("make", "size", "rows"),
    [
        (CausalEncoder, (3, 17, 128, 128), ENCODER),
        (CausalDecoder, (6, 5, 16, 16), DECODER),
    ],
)
def test_published_stages(
    make: type[CausalEncoder | CausalDecoder], size: tuple[int, ...], rows: list[Row]
) -> None:
    with torch.device("meta"):
        layers, x = iter(make(PUBLISHED, 6).layers), torch.empty(1, *size)
    for count, parameters, shape in rows:
        stage = nn.Sequential(*islice(layers, count))
        x = stage(x)
        assert num_parameters(stage) == parameters
        assert tuple(x.shape[1:]) == shape
    assert not list(layers)


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
    encoder, decoder = randomised(CausalEncoder(DEEP, 5)), randomised(CausalDecoder(DEEP, 5))
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


@pytest.mark.parametrize("lengths", [[1, 4, 4, 4], [5, 8], [9, 4]])
def test_chunks_give_what_the_whole_clip_gives(lengths: list[int]) -> None:
    encoder, decoder = randomised(CausalEncoder(DEEP, 5)), randomised(CausalDecoder(DEEP, 5))
    video = torch.randn(2, 3, 13, 8, 8)
    encoding, decoding = StreamState(), StreamState()
    with torch.no_grad():
        latents = [encoder(chunk, encoding) for chunk in video.split(lengths, dim=2)]
        assert [x.shape[2] for x in latents] == [-(-n // 4) for n in lengths]
        frames = [decoder(latent, decoding) for latent in latents]
        assert [x.shape[2] for x in frames] == lengths
        latent = encoder(video)
        torch.testing.assert_close(torch.cat(latents, dim=2), latent, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat(frames, dim=2), decoder(latent), atol=1e-5, rtol=1e-5)


def test_a_stream_keeps_no_more_the_longer_it_is() -> None:
    encoder, state = CausalEncoder(DEEP, 5), StreamState()
    kept = []
    with torch.no_grad():
        for length in (5, 8, 8, 8):
            encoder(torch.randn(1, 3, length, 8, 8), state)
            kept.append(sum(x.untyped_storage().nbytes() for x in state.frames.values()))
    assert len({*kept}) == 1
    assert state.frames[encoder.layers[0]].shape[2:] == (2, 10, 10)


def test_streams_stay_channels_last_too() -> None:
    decoder, state = CausalDecoder(DEEP, 5), StreamState()
    inputs: list[Tensor] = []
    for module in decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    for latent in torch.randn(3, 5, 4, 4, 4).to(memory_format=torch.channels_last_3d).split(2, 2):
        decoder(latent, state)
    assert len(inputs) > 20
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in inputs)


def test_chunks_of_another_size_are_refused() -> None:
    encoder, state = CausalEncoder(DEEP, 5), StreamState()
    encoder(torch.randn(2, 3, 5, 8, 8), state)
    with pytest.raises(UserError, match=r"\(2, 8, 16\) after \(2, 8, 8\)"):
        encoder(torch.randn(2, 3, 4, 8, 16), state)


def saved_bytes_and_gradients(network: CausalStack, x: Tensor) -> tuple[int, list[Tensor]]:
    """What is kept for the backward pass, and the gradients that it gives."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(x).square().mean()
    network.zero_grad()
    loss.backward()
    return sum(kept.values()), [p.grad for p in network.parameters() if p.grad is not None]


def test_gradient_checkpointing_saves_memory_and_changes_no_gradient() -> None:
    network = CausalEncoder(DEEP, 5)
    x = torch.randn(2, 3, 5, 32, 32)
    plain, expected = saved_bytes_and_gradients(network, x)
    network.gradient_checkpointing = True
    checkpointed, found = saved_bytes_and_gradients(network, x)
    assert checkpointed < plain / 3
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found, expected)


def test_weights_say_the_dtype() -> None:
    encoder, decoder = CausalEncoder(TINY, 4).bfloat16(), CausalDecoder(TINY, 4).bfloat16()
    video = decoder(encoder(torch.randn(1, 3, 5, 8, 8)))
    assert video.dtype == torch.bfloat16
    assert video.isfinite().all()


def test_compiles_in_one_piece() -> None:
    """No graph break: norm, swish and padding can be fused."""
    encoder = CausalEncoder(TINY, 4)
    x = torch.randn(1, 3, 3, 8, 8)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), encoder(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multipliers": (1, 2), "strides": ()}, "one stride fewer"),
        ({"strides": ((4, 2, 2), (2, 2, 2), (2, 2, 2))}, "1 to 2, not 4"),
        ({"base": 48}, "multiples of num_groups"),
    ],
)
def test_impossible_backbones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(**arguments)
