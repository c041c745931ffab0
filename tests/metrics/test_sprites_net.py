"""The shipped SpritesNet reads unseen sprites, and its features tell apart what fd-sprites must tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.files import sha256_file
from arvid.metrics.attributes import AttributeAccuracy
from arvid.metrics.frechet import frechet_distance_from_features
from arvid.metrics.sprites_net import (
    ASSET,
    ATTRIBUTES,
    SpritesNet,
    load_sprites_net,
    save_sprites_net,
)

NUM_CLIPS = 256


@pytest.fixture(scope="module")
def net() -> SpritesNet:
    return load_sprites_net()


def render(
    seed: int, num_clips: int = NUM_CLIPS, **options: int
) -> tuple[Tensor, list[dict[str, str]]]:
    clips = list(Sprites(num_clips, seed=seed, **options))
    videos = torch.from_numpy(np.stack([clip.video for clip in clips]))
    return videos, [clip.attributes for clip in clips]


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, list[dict[str, str]]]:
    return render(11)


def blurred(videos: Tensor) -> Tensor:
    frames = videos.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, scale_factor=0.5, mode="area")
    frames = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    return frames.permute(0, 2, 3, 1).byte().reshape(videos.shape)


def noisy(videos: Tensor) -> Tensor:
    return (videos + 10 * torch.randn(videos.shape)).clamp(0, 255).byte()


def shuffled(videos: Tensor) -> Tensor:
    return videos[:, torch.randperm(videos.shape[1])]


def repeated(videos: Tensor) -> Tensor:
    return videos[:, :1].expand_as(videos)


def recoloured(videos: Tensor) -> Tensor:
    return videos[..., [1, 2, 0]]


def brighter_background(videos: Tensor) -> Tensor:
    return torch.where(videos < 75, videos + 40, videos)


def test_the_asset_is_small_and_its_record_is_of_it(net: SpritesNet) -> None:
    record = json.loads(ASSET.with_suffix(".json").read_text())
    assert ASSET.stat().st_size < 1_000_000
    assert record["sha256"] == sha256_file(ASSET) == net.sha256
    assert min(record["validation"]["clean"].values()) > 0.97


def test_unseen_sprites_are_read_rightly(
    net: SpritesNet, real: tuple[Tensor, list[dict[str, str]]]
) -> None:
    metric = AttributeAccuracy(net)
    metric.update(*real)
    values = metric.compute()
    assert min(float(value) for value in values.values()) > 0.95, values


def test_features_have_about_unit_variance(
    net: SpritesNet, real: tuple[Tensor, list[dict[str, str]]]
) -> None:
    features = net(real[0])
    assert features.shape == (NUM_CLIPS, net.num_features)
    assert 0.6 < float(features.var(0).mean()) < 1.7


@pytest.mark.parametrize(
    "spoil",
    [blurred, noisy, shuffled, repeated, recoloured, brighter_background],
    ids=lambda f: f.__name__,
)
def test_spoilt_clips_are_far_from_real_ones(
    net: SpritesNet, real: tuple[Tensor, list[dict[str, str]]], spoil: object
) -> None:
    assert callable(spoil)
    features, others = net(real[0]), render(12)[0]
    floor = float(frechet_distance_from_features(features, net(others)))
    distance = float(frechet_distance_from_features(features, net(spoil(others))))
    assert distance > 2 * floor


@pytest.mark.parametrize("options", [{"size": 64}, {"size": 24}, {"num_frames": 9}])
def test_other_sizes_and_lengths_are_read_too(net: SpritesNet, options: dict[str, int]) -> None:
    metric = AttributeAccuracy(net)
    metric.update(*render(13, 128, **options))
    assert float(metric.compute()["attribute-accuracy"]) > 0.85


def test_too_few_frames_are_refused(net: SpritesNet) -> None:
    with pytest.raises(UserError, match="at least 5 frames, got 4"):
        net(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))


def test_saved_weights_come_back_in_half_precision(tmp_path: Path) -> None:
    net = SpritesNet()
    net.features(torch.randn(4, 3, 9, 32, 32))  # moves the running statistics
    save_sprites_net(net, tmp_path / "x.safetensors", {"steps": "0"})
    loaded = load_sprites_net(tmp_path / "x.safetensors")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(loaded.state_dict()[name], value.half().float())


def test_classify_names_a_value_of_each_attribute(net: SpritesNet) -> None:
    (found,) = net.classify(torch.zeros(1, 17, 32, 32, 3, dtype=torch.uint8))
    assert all(found[name] in values for name, values in ATTRIBUTES.items())


def test_missing_or_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_sprites_net"):
        load_sprites_net(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"other\.safetensors does not hold"):
        load_sprites_net(tmp_path / "other.safetensors")
