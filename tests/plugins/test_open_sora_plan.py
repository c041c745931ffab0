"""open_sora_plan: the published names and numbers, the network against diffusers' own, tiles and files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from arvid.contracts import TokenGrid, UserError
from arvid.tokenizers.open_sora_plan import OpenSoraPlan, network
from arvid.tokenizers.open_sora_plan.network import CausalConv3d, UpsampleOverTime
from arvid.training.export import fingerprint, load_tokenizer, save_tokenizer

CHANNELS = (4, 8, 12, 12)
GROUPS = 2
CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKLOpenSora",
    "act_fn": "silu",
    "block_out_channels": list(CHANNELS),
    "down_block_types": ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2,
    "up_block_types": ["UpDecoderBlock3D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": GROUPS,
    "sample_size": 480,
    "scaling_factor": 0.18215,
}
"""The published configuration, but for its widths."""


@pytest.fixture
def tokenizer() -> OpenSoraPlan:
    return OpenSoraPlan(channels=CHANNELS, num_groups=GROUPS).requires_grad_(False).eval()


def some_video(num_frames: int) -> torch.Tensor:
    return torch.rand(2, 3, num_frames, 16, 24) * 2 - 1


def kl(channels: tuple[int, ...], groups: int = 32) -> AutoencoderKL:
    """The autoencoder of images that this one grew out of."""
    return AutoencoderKL(
        block_out_channels=list(channels),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=groups,
    )


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer, images = OpenSoraPlan(), kl((128, 256, 512, 512))
    tensors = tokenizer.state_dict()
    assert tensors.keys() == images.state_dict().keys()
    assert len(tensors) == 248
    assert sum(value.numel() for value in tensors.values()) == 239_189_991
    assert sum(value.ndim == 5 for value in tensors.values()) == 53
    video = torch.empty(1, 3, 33, 480, 768, device="meta")
    tokens = tokenizer.encode(video)
    assert tokens.shape == (1, 9, 60, 96, 4)
    assert tokenizer.spec.grid(33, 480, 768) == TokenGrid(9, 60, 96)
    assert tokenizer.decode(tokens).shape == video.shape


def as_images(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kernels summed over time: what they do to a clip of one frame, which is repeated in front of itself."""
    return {name: value.sum(2) if value.ndim == 5 else value for name, value in tensors.items()}


def test_one_frame_is_encoded_as_diffusers_encodes_an_image(tokenizer: OpenSoraPlan) -> None:
    images = kl(CHANNELS, GROUPS).eval()
    images.load_state_dict(as_images(tokenizer.state_dict()))
    video = some_video(1)
    expected = images.encode(video[:, :, 0]).latent_dist
    tokens, spread = (x[:, 0].movedim(-1, 1) for x in tokenizer.encode_posterior(video))
    torch.testing.assert_close(tokens, expected.mode() * 0.18215, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread, expected.std * 0.18215, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.encode(video)[:, 0].movedim(-1, 1), tokens)


def test_one_latent_is_decoded_as_diffusers_does_but_for_how_it_grows(
    tokenizer: OpenSoraPlan, monkeypatch: pytest.MonkeyPatch, rounding: Callable[..., Any]
) -> None:
    """Of a constant image both ways of growing make the same: all of the network else is compared."""
    images = kl(CHANNELS, GROUPS).eval()
    images.load_state_dict(as_images(tokenizer.state_dict()))
    interpolate = torch.nn.functional.interpolate

    def nearest(x: torch.Tensor, scale_factor: Any, mode: str) -> torch.Tensor:
        return interpolate(x, scale_factor=scale_factor, mode="nearest")

    monkeypatch.setattr(network.F, "interpolate", nearest)
    latent = torch.randn(2, 1, 2, 3, 4)
    video = tokenizer.decode(latent * 0.18215)[:, :, 0]
    monkeypatch.undo()
    expected = images.decode(latent[:, 0].movedim(-1, 1)).sample.clamp(-1, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(video, expected, **rounding(expected, tokenizer))


def test_convolutions_repeat_the_first_frame_in_front() -> None:
    conv = CausalConv3d(1, 1, 3, stride=2).requires_grad_(False)
    conv.weight.zero_()
    conv.weight[0, 0, :, 0, 0] = torch.tensor([100.0, 10.0, 1.0])  # two frames back, one back, now
    conv.bias.zero_()
    frames = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    out = conv(frames.view(1, 1, 5, 1, 1).expand(1, 1, 5, 3, 3))
    assert out.flatten().tolist() == [111.0, 123.0, 345.0]


def test_frames_after_the_first_grow_linearly() -> None:
    """Half-way points between neighbours at a quarter and three quarters, held at the ends."""
    grow = UpsampleOverTime(1).requires_grad_(False)
    grow.conv.weight.zero_()
    grow.conv.weight[0, 0, 2, 1, 1] = 1.0
    grow.conv.bias.zero_()
    frames = torch.tensor([8.0, 0.0, 4.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    grown = grow(frames)
    assert grown.shape == (1, 1, 5, 4, 4)
    assert grown[0, 0, :, 1, 1].tolist() == [8.0, 0.0, 1.0, 3.0, 4.0]


def test_later_frames_reach_earlier_tokens_through_the_norms_alone(tokenizer: OpenSoraPlan) -> None:
    """So the prefix is not exact; without norms it would be."""
    video = some_video(9)
    changed = torch.cat([video[:, :, :5], some_video(4)], dim=2)
    before, after = tokenizer.encode(video)[:, :2], tokenizer.encode(changed)[:, :2]
    assert not torch.allclose(before, after, atol=1e-4)
    assert not tokenizer.spec.exact_prefix
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x / 2  # type: ignore[method-assign]
    before, after = tokenizer.encode(video)[:, :2], tokenizer.encode(changed)[:, :2]
    torch.testing.assert_close(before, after)


# --- tiles


def test_long_clips_go_through_in_tiles_that_share_a_frame(tokenizer: OpenSoraPlan) -> None:
    video = some_video(33)
    tokens = tokenizer.encode(video)
    tiles = [tokenizer.encode(video[:, :, :17]), tokenizer.encode(video[:, :, 16:])[:, 1:]]
    assert tokens.shape == (2, 9, 2, 3, 4)
    torch.testing.assert_close(tokens, torch.cat(tiles, dim=1))
    frames = tokenizer.decode(tokens)
    tiles = [tokenizer.decode(tokens[:, :5]), tokenizer.decode(tokens[:, 4:])[:, :, 1:]]
    assert frames.shape == video.shape
    torch.testing.assert_close(frames, torch.cat(tiles, dim=2))


@pytest.mark.parametrize("num_frames", [5, 17, 49])
@pytest.mark.parametrize("latent_frames", [1, 3, 8])
def test_streams_are_the_whole_clip(
    tokenizer: OpenSoraPlan, num_frames: int, latent_frames: int
) -> None:
    video = some_video(num_frames)
    chunks = video.split(tokenizer.spec.chunk_frames(num_frames, latent_frames), dim=2)
    tokens = tokenizer.encode(video)
    streamed = torch.cat(list(tokenizer.encode_stream(iter(chunks))), dim=1)
    torch.testing.assert_close(streamed, tokens)
    frames = tokenizer.decode_stream(iter(tokens.split(latent_frames, dim=1)))
    torch.testing.assert_close(torch.cat(list(frames), dim=2), tokenizer.decode(tokens))


def test_frame_counts_that_do_not_fit(tokenizer: OpenSoraPlan) -> None:
    with pytest.raises(UserError, match=r"16 frames do not fit.*1 \+ 4·n"):
        tokenizer.encode(some_video(16))
    with pytest.raises(UserError, match=r"29 frames do not fit.*1 \+ 16·n.*nearest are 17 and 33"):
        tokenizer.encode(some_video(29))
    with pytest.raises(UserError, match=r"7 latent frames do not fit.*nearest are 5 and 9"):
        tokenizer.decode(torch.zeros(1, 7, 2, 3, 4))
    with pytest.raises(UserError, match="29 frames do not fit"):
        list(tokenizer.encode_stream(iter([some_video(17), some_video(12)])))
    with pytest.raises(UserError, match="multiple of 8"):
        tokenizer.encode(torch.zeros(1, 3, 5, 12, 16))


def test_widths_that_the_groups_do_not_divide() -> None:
    with pytest.raises(UserError, match="num_groups=32"):
        OpenSoraPlan(channels=(16, 32, 32, 32))


# --- files


def publish(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> str:
    """Write a folder as the published one is, in half precision; returns what names it."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    halves = {name: value.half() for name, value in tensors.items()}
    save_file(halves, folder / "diffusion_pytorch_model.safetensors")
    return f"open_sora_plan:{folder}"


def test_published_folder(tokenizer: OpenSoraPlan, tmp_path: Path) -> None:
    loaded = load_tokenizer(publish(tmp_path, tokenizer.state_dict()))
    assert isinstance(loaded, OpenSoraPlan)
    assert not loaded.training
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    expected = {name: value.half().float() for name, value in tokenizer.state_dict().items()}
    tokenizer.load_state_dict(expected)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    save_tokenizer(loaded, tmp_path / "own.safetensors", {})
    assert fingerprint(load_tokenizer(tmp_path / "own.safetensors")) == fingerprint(tokenizer)


def test_tensors_that_do_not_fit_are_listed(tokenizer: OpenSoraPlan, tmp_path: Path) -> None:
    tensors = tokenizer.state_dict()
    del tensors["decoder.conv_in.bias"]
    tensors["stranger"] = torch.zeros(1)
    tensors["quant_conv.weight"] = torch.zeros(8, 4, 1, 1, 1)
    with pytest.raises(UserError) as raised:
        load_tokenizer(publish(tmp_path, tensors))
    for part in (str(tmp_path), "missing decoder.conv_in.bias", "unexpected stranger"):
        assert part in str(raised.value)
    assert "quant_conv.weight is (8, 4, 1, 1, 1), not (8, 8, 1, 1, 1)" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'"),
        ({"layers_per_block": 3}, "layers_per_block is 3, not 2"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 4}, "down_block_types is"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1"),
        ({"block_out_channels": [128, 256]}, "must be four multiples"),
    ],
)
def test_other_autoencoders_are_refused(
    tokenizer: OpenSoraPlan, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        load_tokenizer(publish(tmp_path, tokenizer.state_dict(), **changes))


def test_a_configuration_with_something_missing(tokenizer: OpenSoraPlan, tmp_path: Path) -> None:
    name = publish(tmp_path, tokenizer.state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLOpenSora"}))
    with pytest.raises(UserError, match="lacks block_out_channels"):
        load_tokenizer(name)


def test_pretrained_does_not_take_it(tokenizer: OpenSoraPlan, tmp_path: Path) -> None:
    publish(tmp_path, tokenizer.state_dict())
    with pytest.raises(UserError, match="'AutoencoderKLOpenSora' is not a supported autoencoder"):
        load_tokenizer(f"pretrained:{tmp_path}")


def test_the_page_names_it(tokenizer: OpenSoraPlan, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tokenizers.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    named = publish(tmp_path, tokenizer.state_dict())
    names: dict[str, Any] = {}
    exec(re.sub(r"open_sora_plan:[^\"]+", named, code), names)
    assert isinstance(names["tokenizer"], OpenSoraPlan)
