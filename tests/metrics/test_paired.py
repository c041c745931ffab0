"""PSNR, SSIM and LPIPS against closed forms and the libraries' own values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.metrics.paired import MAX_PSNR, PairedMetric, Psnr, Ssim
from arvid.metrics.perceptual import BACKBONES, Lpips
from arvid.weights import KNOWN

import torchmetrics.image  # isort: skip  # after arvid, which mends the import of torchvision


def clips(num: int = 3, seed: int = 0, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 4, size, size, 3), generator=generator, dtype=torch.uint8)


def frame(videos: Tensor, clip: int, index: int) -> Tensor:
    return videos[clip, index].permute(2, 0, 1)[None].float() / 255


def test_psnr_of_a_constant_error_has_the_closed_form() -> None:
    reference = torch.full((2, 3, 8, 8, 3), 100, dtype=torch.uint8)
    generated = reference.clone()
    for index, error in enumerate((1, 5, 50)):
        generated[:, index] += error
    score_of = [20 * math.log10(255 / error) for error in (1, 5, 50)]
    metric = Psnr()
    metric.update(generated, reference)
    score = metric.compute()
    assert score.per_frame == pytest.approx(score_of, rel=1e-5)
    assert score.value == pytest.approx(sum(score_of) / 3, rel=1e-5)
    assert (score.num_clips, score.standard_error) == (2, pytest.approx(0))
    pooled = Psnr(pooled=True)
    pooled.update(generated, reference)
    mean_error = (1 + 25 + 2500) / 3
    assert pooled.compute().value == pytest.approx(10 * math.log10(255**2 / mean_error), rel=1e-5)
    assert pooled.compute().per_frame == pytest.approx(score_of, rel=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_psnr_of_equal_frames_is_capped_so_that_json_can_hold_it(pooled: bool) -> None:
    metric = Psnr(pooled=pooled)
    metric.update(clips(), clips())
    assert metric.compute().value == MAX_PSNR
    assert "Infinity" not in json.dumps(metric.compute().per_frame)


@pytest.mark.parametrize(
    ("metric", "name"),
    [(Psnr(), "PeakSignalNoiseRatio"), (Ssim(), "StructuralSimilarityIndexMeasure")],
)
def test_agrees_with_torchmetrics_frame_by_frame(metric: PairedMetric, name: str) -> None:
    theirs = getattr(torchmetrics.image, name)(data_range=1.0)
    reference, noise = clips(), clips(seed=1)
    generated = (0.7 * reference.float() + 0.3 * noise.float()).byte()
    expected = torch.tensor(
        [
            [float(theirs(frame(generated, i, t), frame(reference, i, t))) for t in range(4)]
            for i in range(3)
        ]
    )
    for i in range(3):
        metric.update(generated[i : i + 1], reference[i : i + 1])
    score = metric.compute()
    assert score.per_frame == pytest.approx(expected.mean(0).tolist(), rel=1e-4)
    assert score.value == pytest.approx(float(expected.mean()), rel=1e-4)
    error = float(expected.mean(1).std() / math.sqrt(3))
    assert score.standard_error == pytest.approx(error, rel=1e-2)


def test_ssim_of_equal_frames_is_one_and_small_frames_are_refused() -> None:
    metric = Ssim()
    metric.update(clips(size=11), clips(size=11))
    assert metric.compute().value == pytest.approx(1)
    with pytest.raises(UserError, match="at least 11x11 pixels, got 8x8"):
        metric.update(clips(size=8), clips(size=8))


def test_a_single_clip_has_no_standard_error() -> None:
    metric = Psnr()
    metric.update(clips(1), clips(1, seed=1))
    assert metric.compute().standard_error is None


def test_merged_metrics_equal_one() -> None:
    whole, left, right = Psnr(), Psnr(), Psnr()
    a, b = clips(5), clips(5, seed=1)
    for metric, rows in ((whole, slice(None)), (left, slice(0, 2)), (right, slice(2, None))):
        metric.update(a[rows], b[rows])
    left.merge_state(right)
    assert left.compute().num_clips == 5
    assert left.compute().value == pytest.approx(whole.compute().value)
    assert left.compute().per_frame == pytest.approx(whole.compute().per_frame)


def test_unlike_pairs_are_refused() -> None:
    metric = Psnr()
    with pytest.raises(ValueError, match="of no clips"):
        metric.compute()
    with pytest.raises(ValueError, match="same shape"):
        metric.update(clips(3), clips(2))
    with pytest.raises(ValueError, match="reference videos as uint8"):
        metric.update(clips(), clips().float())
    metric.update(clips(), clips())
    with pytest.raises(ValueError, match="same number of frames: 4 so far, now 2"):
        metric.update(clips()[:, :2], clips()[:, :2])


def test_lpips_squeeze_gives_the_published_values(shared: Path) -> None:
    weights = shared / "weights/lpips_squeeze/squeezenet1_1_features.safetensors"
    if not weights.is_file():
        pytest.skip(f"needs the weights {weights.name}, which are not here")
    metric = Lpips("squeeze", backbone=weights)
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    # The doctest of torchmetrics 1.x; frames come in [0, 1].
    assert metric.score_frames(a, b).tolist() == pytest.approx([0.1024, 0.0938], abs=6e-5)
    assert metric.name == "lpips-squeeze"
    assert metric.sha256.startswith("29dd9af4")
    metric.update(clips(2, size=32), clips(2, size=32))
    assert metric.compute().value == pytest.approx(0)
    with pytest.raises(UserError, match="at least 32x32"):
        metric.update(clips(), clips())


@pytest.mark.parametrize("net", sorted(BACKBONES))
def test_missing_lpips_weights_are_named_with_their_source(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = KNOWN[BACKBONES[net]]
    for given in (None, tmp_path / "none.pth"):
        with pytest.raises(UserError) as caught:
            Lpips(net, backbone=given)
        assert f"https://download.pytorch.org/models/{weights.file}" in str(caught.value)
        assert str(weights.path) in str(caught.value)
    assert weights.path.is_relative_to(tmp_path)


def test_other_lpips_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(b"<html>not found</html>")
    (tmp_path / "z.safetensors").write_bytes(b"<html>not found</html>")
    for name in ("x.pth", "y.pth", "z.safetensors"):
        with pytest.raises(UserError, match=f"{name} does not hold the weights"):
            Lpips("squeeze", backbone=tmp_path / name)
    with pytest.raises(UserError, match="alex, vgg, squeeze, not 'resnet'"):
        Lpips("resnet")
