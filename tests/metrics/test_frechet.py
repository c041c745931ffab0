"""The Fréchet distance against closed forms, an independent reference, and itself in other guises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from arvid.metrics.frechet import (
    FeatureNetwork,
    FrechetDistance,
    frechet_distance_from_features,
    frechet_distance_from_moments,
)


class MeanColour(FeatureNetwork):
    """Mean of each channel of each quarter of the frame: 12 features."""

    name = "mean-colour"
    num_features = 12

    def forward(self, videos: Tensor) -> Tensor:
        frames = videos.float().mean(1).permute(0, 3, 1, 2)
        return torch.nn.functional.adaptive_avg_pool2d(frames, 2).flatten(1)


def features(num: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated features of several scales, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -2, dim, dtype=torch.float64)
    points = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return points @ (scales[:, None] * mix) + mix[0]


def videos(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + seed, (num, 3, 8, 8, 3), generator=generator, dtype=torch.uint8)


def precise_distance(a: Tensor, b: Tensor, ddof: int = 1) -> float:
    """The textbook formula with 40 digits: the trace of (S_a^1/2 S_b S_a^1/2)^1/2 by eigenvalues."""
    with mpmath.workdps(40):
        (mean_a, cov_a), (mean_b, cov_b) = (_precise_moments(x, ddof) for x in (a, b))
        values, vectors = mpmath.eigsy(cov_a)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        product = root * cov_b * root
        cross = mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        shift = mpmath.fsum((x - y) ** 2 for x, y in zip(mean_a, mean_b, strict=True))
        traces = mpmath.fsum(c[i, i] for c in (cov_a, cov_b) for i in range(c.rows))
        return float(shift + traces - 2 * mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in cross))


def _precise_moments(x: Tensor, ddof: int) -> tuple[list[Any], Any]:
    rows = mpmath.matrix(x.tolist())
    num, dim = rows.rows, rows.cols
    mean = [mpmath.fsum(rows[i, j] for i in range(num)) / num for j in range(dim)]
    centred = mpmath.matrix([[rows[i, j] - mean[j] for j in range(dim)] for i in range(num)])
    return mean, centred.T * centred / (num - ddof)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.cov(x.T)


def test_two_gaussians_with_commuting_covariances_have_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 3.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([2.0, 0.5, 1.0])
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    found = frechet_distance_from_moments(
        mean_a, std_a.square().diag(), mean_b, std_b.square().diag()
    )
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("num", [2, 5, 20, 500])
def test_a_set_is_at_distance_zero_from_itself(num: int) -> None:
    a = features(num, 20)
    trace = float(torch.cov(a.T).trace())
    assert 0 <= float(frechet_distance_from_features(a, a)) < 1e-12 * trace
    assert float(frechet_distance_from_features(a, a.flip(0))) < 1e-12 * trace
    twice = frechet_distance_from_moments(*moments(a), *moments(a.flip(0)), counts=(num, num))
    assert 0 <= float(twice) < 1e-12 * trace


@pytest.mark.parametrize(("n", "m"), [(3, 4), (15, 16), (16, 17), (17, 15), (150, 120), (120, 3)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_equals_the_textbook_formula_in_forty_digits(n: int, m: int, ddof: int) -> None:
    a, b = features(n, 16), features(m, 16, seed=1)
    expected = precise_distance(a, b, ddof)
    assert float(frechet_distance_from_features(a, b, ddof)) == pytest.approx(expected, rel=1e-12)
    if ddof == 1:
        found = frechet_distance_from_moments(*moments(a), *moments(b), counts=(n, m))
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_equals_the_eigenvalues_of_the_product_for_as_many_features_as_fvd_has() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 400, generator=generator, dtype=torch.float64) for n in (1500, 1300))
    b = 1.1 * b + 0.1
    cov_a, cov_b = (np.cov(x.numpy().T) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root)).sum()
    shift = float((a.mean(0) - b.mean(0)).square().sum())
    expected = shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert float(frechet_distance_from_features(a, b)) == pytest.approx(expected, rel=1e-11)


def test_equals_scipy_sqrtm() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(400, 8), features(300, 8, seed=1)
    root = linalg.sqrtm(torch.cov(a.T).numpy() @ torch.cov(b.T).numpy()).real.trace()
    traces = torch.cov(a.T).trace() + torch.cov(b.T).trace()
    expected = float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * root)
    assert float(frechet_distance_from_features(a, b)) == pytest.approx(expected, rel=1e-9)


def test_is_symmetric_and_ignores_rotation_and_translation() -> None:
    a, b = features(30, 16), features(40, 16, seed=1)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    distance = float(frechet_distance_from_features(a, b))
    assert float(frechet_distance_from_features(b, a)) == pytest.approx(distance, rel=1e-10)
    turned = frechet_distance_from_features(a @ rotation + 5, b @ rotation + 5)
    assert float(turned) == pytest.approx(distance, rel=1e-9)
    assert float(frechet_distance_from_features(3 * a, 3 * b)) == pytest.approx(9 * distance)


@pytest.mark.parametrize("n", [6, 64])
def test_moments_and_features_agree(n: int) -> None:
    a, b = features(n, 16), features(n + 3, 16, seed=1)
    by_features = float(frechet_distance_from_features(a, b))
    known = frechet_distance_from_moments(*moments(a), *moments(b), counts=(n, n + 3))
    assert float(known) == pytest.approx(by_features, rel=1e-12)
    unknown = frechet_distance_from_moments(*moments(a), *moments(b))
    assert float(unknown) == pytest.approx(by_features, rel=1e-6)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("num", [8, 40])
def test_streaming_equals_the_whole_set_at_once(keep: bool, num: int) -> None:
    real, fake, network = videos(num), videos(num - 1, seed=5), MeanColour()
    metric = FrechetDistance(network, keep_features=keep)
    for batch in fake.split(7):
        metric.update(batch, real=False)
    for batch in real.split(9):
        metric.update(batch, real=True)
    expected = frechet_distance_from_features(network(real), network(fake))
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)
    assert float(expected) > 0


class Shifted(MeanColour):
    """The same features far from the origin."""

    offset = 1e8

    def forward(self, videos: Tensor) -> Tensor:
        return super().forward(videos).double() + self.offset


def test_a_reference_keeps_the_moments_right_far_from_the_origin() -> None:
    reference = torch.full((12,), Shifted.offset, dtype=torch.float64)
    metric = FrechetDistance(Shifted(), keep_features=False, reference=reference)
    metric.update(videos(50), real=True)
    metric.update(videos(60, seed=5), real=False)
    network = MeanColour()
    expected = frechet_distance_from_features(network(videos(50)), network(videos(60, seed=5)))
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_two_merged_metrics_equal_one(keep: bool) -> None:
    real, fake = videos(20), videos(20, seed=5)
    whole, left, right = (FrechetDistance(MeanColour(), keep_features=keep) for _ in range(3))
    for metric, rows in ((whole, slice(None)), (left, slice(0, 13)), (right, slice(13, None))):
        metric.update(real[rows], real=True)
        metric.update(fake[rows], real=False)
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), rel=1e-9)


def _worker(rank: int, world_size: int, keep: bool, folder: str) -> None:
    torch.set_num_threads(
        1
    )  # a forked process has none of its parent's OpenMP threads and would wait for them
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    metric = FrechetDistance(MeanColour(), keep_features=keep)
    metric.update(videos(20)[rank::world_size], real=True)
    if rank == 0:  # the other processes have no generated clip at all
        metric.update(videos(9, seed=5), real=False)
    std = metric.bootstrap_std(num=5) if keep else 0.0
    torch.save((metric.compute(), std), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_several_processes_give_the_value_of_one(
    keep: bool, world_size: int, tmp_path: Path
) -> None:
    arguments = (world_size, keep, str(tmp_path))
    mp.start_processes(_worker, args=arguments, nprocs=world_size, start_method="fork")
    single = FrechetDistance(MeanColour())
    single.update(videos(20), real=True)
    single.update(videos(9, seed=5), real=False)
    for rank in range(world_size):
        value, std = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(value) == pytest.approx(float(single.compute()), rel=1e-9)
        assert std == (pytest.approx(single.bootstrap_std(num=5), rel=1e-9) if keep else 0)


def test_features_have_one_order_however_the_clips_arrive() -> None:
    forth, back = FrechetDistance(MeanColour()), FrechetDistance(MeanColour())
    for metric, step in ((forth, 1), (back, -1)):
        for batch in [videos(7), videos(6, seed=3)][::step]:
            metric.update(batch, real=True)
            metric.update(batch.flip(0)[:4], real=False)
    for one, other in zip(forth.features(), back.features(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert forth.features()[0].shape == (13, 12)
    assert forth.bootstrap_std(num=3) == back.bootstrap_std(num=3)
    with pytest.raises(ValueError, match="keep_features"):
        FrechetDistance(MeanColour(), keep_features=False).features()


def test_reset_forgets_everything() -> None:
    metric = FrechetDistance(MeanColour())
    metric.update(videos(5), real=True)
    metric.reset()
    with pytest.raises(ValueError, match="at least 2 clips in each set, got 0"):
        metric.compute()


@pytest.mark.parametrize("keep", [True, False])
def test_one_clip_is_too_few(keep: bool) -> None:
    metric = FrechetDistance(MeanColour(), keep_features=keep)
    metric.update(videos(1), real=True)
    metric.update(videos(4), real=False)
    with pytest.raises(ValueError, match="got 1"):
        metric.compute()


def test_features_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shifted, "offset", math.nan)
    with pytest.raises(ValueError, match="mean-colour gave features that are not finite"):
        FrechetDistance(Shifted()).update(videos(2), real=True)


def test_only_uint8_video_passes_the_door() -> None:
    with pytest.raises(ValueError, match="uint8"):
        FrechetDistance(MeanColour()).update(torch.rand(2, 3, 8, 8, 3), real=True)


def test_the_bootstrap_needs_features() -> None:
    metric = FrechetDistance(MeanColour(), keep_features=False)
    with pytest.raises(ValueError, match="keep_features"):
        metric.bootstrap_std()
