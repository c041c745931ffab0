"""PSNR, SSIM and MS-SSIM against closed forms, an independent computation and torchmetrics' values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.metrics.paired import (
    FRAMES_AT_ONCE,
    MAX_PSNR,
    InnerMsSsim,
    MsSsim,
    Psnr,
    Ssim,
    inner_similarity,
)

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


def test_psnr_agrees_with_torchmetrics_frame_by_frame() -> None:
    theirs = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)
    reference, noise = clips(), clips(seed=1)
    generated = (0.7 * reference.float() + 0.3 * noise.float()).byte()
    expected = torch.tensor(
        [
            [float(theirs(frame(generated, i, t), frame(reference, i, t))) for t in range(4)]
            for i in range(3)
        ]
    )
    metric = Psnr()
    for i in range(3):
        metric.update(generated[i : i + 1], reference[i : i + 1])
    score = metric.compute()
    assert score.frame_values == pytest.approx(expected.numpy(), rel=1e-4)
    assert score.per_frame == pytest.approx(expected.mean(0).tolist(), rel=1e-4)
    assert score.value == pytest.approx(float(expected.mean()), rel=1e-4)
    error = float(expected.mean(1).std() / math.sqrt(3))
    assert score.standard_error == pytest.approx(error, rel=1e-2)


def test_mean_of_psnr_is_never_below_psnr_of_the_mean() -> None:
    reference, generated = clips(), clips(seed=1)
    generated[:, 2:] = reference[:, 2:].bitwise_xor(torch.tensor(1, dtype=torch.uint8))
    metrics = Psnr(), Psnr(pooled=True)
    for metric in metrics:
        metric.update(generated, reference)
    by_frame, pooled = (metric.compute().value for metric in metrics)
    assert by_frame > pooled + 10


def ssim_by_hand(a: Tensor, b: Tensor) -> float:
    """Wang et al. (2004) of two (3, H, W) frames in [0, 1]: window by window, in double precision."""
    x = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def windows(y: Tensor) -> Tensor:
        return y.double().unfold(1, 11, 1).unfold(2, 11, 1)

    def mean(y: Tensor) -> Tensor:
        return (y * window).sum((-2, -1))

    u, v = windows(a), windows(b)
    mu, mv = mean(u), mean(v)
    var_u, var_v, cov = mean(u * u) - mu**2, mean(v * v) - mv**2, mean(u * v) - mu * mv
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mu * mv + c1) * (2 * cov + c2)
    return float((top / ((mu**2 + mv**2 + c1) * (var_u + var_v + c2))).mean())


def test_ssim_is_the_mean_over_windows_inside_the_frame() -> None:
    reference, noise = clips(size=19), clips(seed=1, size=19)
    generated = (0.7 * reference.float() + 0.3 * noise.float()).byte()
    metric = Ssim()
    metric.update(generated, reference)
    expected = [
        [ssim_by_hand(frame(generated, i, t)[0], frame(reference, i, t)[0]) for t in range(4)]
        for i in range(3)
    ]
    assert metric.compute().frame_values.tolist() == [
        pytest.approx(row, abs=1e-5) for row in expected
    ]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(161, 200, 0.6356965), (163, 163, 0.6289971)]
)
def test_inner_ms_ssim_is_that_of_pytorch_msssim(height: int, width: int, expected: float) -> None:
    """Values of pytorch-msssim 1.0.0 (`ms_ssim`, data range 255) on the same frames."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, height * width * 3).reshape(1, 1, height, width, 3)
    reference = torch.from_numpy((ramp + rng.normal(0, 20, ramp.shape)).clip(0, 255).astype("u1"))
    generated = torch.from_numpy((ramp + rng.normal(0, 20, ramp.shape)).clip(0, 255).astype("u1"))
    metric = InnerMsSsim()
    metric.update(generated, reference)
    assert metric.compute().value == pytest.approx(expected, abs=1e-6)


def test_inner_ms_ssim_has_the_inner_ssim_at_its_coarsest_scale() -> None:
    a, b = (clips(1, seed=seed, size=161)[0, :1].movedim(-1, 1) / 255 for seed in (0, 1))
    similarity, structure = inner_similarity(a, b)
    expected = [ssim_by_hand(x, y) for x, y in zip(a, b, strict=True)]
    assert similarity.mean(1).tolist() == pytest.approx(expected, abs=1e-5)
    assert (structure != similarity).all()
    with pytest.raises(UserError, match="at least 161x161"):
        InnerMsSsim().score_frames(a[..., :160], b[..., :160])


def test_ms_ssim_agrees_with_torchmetrics_and_refuses_small_frames() -> None:
    reference, noise = clips(1, size=176)[:, :2], clips(1, seed=1, size=176)[:, :2]
    generated = (0.7 * reference.float() + 0.3 * noise.float()).byte()
    theirs = torchmetrics.image.MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
    metric = MsSsim()
    metric.update(generated, reference)
    metric.update(reference, reference)
    expected = [float(theirs(frame(generated, 0, t), frame(reference, 0, t))) for t in range(2)]
    assert max(expected) < 0.99
    values = metric.compute().frame_values
    assert values[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert values[1].tolist() == pytest.approx([1, 1])
    small = torch.zeros(1, 1, 200, 175, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match="MS-SSIM needs frames of at least 176x176 pixels"):
        MsSsim().update(small, small)


def test_long_clips_give_what_their_parts_give() -> None:
    num = FRAMES_AT_ONCE // 4 + 2
    whole, parts = Ssim(), Ssim()
    a, b = clips(num), clips(num, seed=1)
    whole.update(a, b)
    for i in range(num):
        parts.update(a[i : i + 1], b[i : i + 1])
    assert whole.compute().frame_values == pytest.approx(parts.compute().frame_values, abs=1e-6)


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
