"""Pixels and LPIPS as training losses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from arvid.contracts import UserError
from arvid.metrics.perceptual import Lpips
from arvid.training.losses import Perceptual, PerceptualLoss, Reconstruction


def clips(num_frames: int = 3, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 3, num_frames, size, size)
    a, b = torch.rand(shape, generator=generator) * 2 - 1
    return a, b


def test_pixels() -> None:
    video = torch.zeros(1, 3, 1, 2, 2)
    off = video + 0.5
    assert Reconstruction().loss(off, video).item() == pytest.approx(0.5)
    assert Reconstruction(l1=0, l2=5).loss(off, video).item() == pytest.approx(1.25)
    assert Reconstruction(l1=2, l2=1).loss(off, video).item() == pytest.approx(1.25)
    assert Reconstruction().loss(off.bfloat16(), video).dtype == torch.float32
    with pytest.raises(UserError, match="must be above 0"):
        Reconstruction(l1=0)


def test_lpips_is_that_of_the_metric(squeeze: str) -> None:
    loss = PerceptualLoss(Perceptual(net="squeeze", backbone=squeeze))
    made, video = clips()
    frames = [((x + 1) / 2).transpose(1, 2).flatten(0, 1) for x in (made, video)]
    expected = Lpips("squeeze", backbone=squeeze).score_frames(*frames).mean()
    torch.testing.assert_close(loss(made, video), expected)
    assert loss(video, video) == 0


def test_lpips_of_one_random_frame_compares_the_same_one(squeeze: str) -> None:
    loss = PerceptualLoss(Perceptual(net="squeeze", backbone=squeeze, frames="one"))
    made, video = clips()
    assert loss(video, video) == 0
    each = torch.stack(
        [
            torch.stack(
                [
                    loss.of_all_frames(made[i : i + 1, :, [t]], video[i : i + 1, :, [t]])
                    for t in range(3)
                ]
            )
            for i in range(2)
        ]
    )
    means = (each[0][:, None] + each[1][None]).flatten() / 2  # of all pairs of frames
    drawn = [loss(made, video) for _ in range(8)]
    assert all((means - x).abs().min() < 1e-5 for x in drawn)
    assert len({round(float(x), 6) for x in drawn}) > 1


def test_lpips_pulls_at_the_reconstruction_alone(squeeze: str) -> None:
    loss = PerceptualLoss(Perceptual(net="squeeze", backbone=squeeze))
    made, video = (x.requires_grad_() for x in clips())
    loss(made, video.detach()).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.network.parameters())
    assert copy.deepcopy(loss) is loss  # weight averaging copies the module that trains
    with pytest.raises(UserError, match="at least 32x32"):
        loss(*clips(size=16))


def test_missing_weights_say_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth, which is missing") as caught:
        PerceptualLoss(Perceptual())
    assert "download.pytorch.org" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
