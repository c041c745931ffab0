"""Curves over the sample count, their limit, and intervals, on Gaussians whose distance is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from arvid.metrics.frechet import frechet_distance_from_features
from arvid.metrics.sample_count import (
    default_counts,
    sample_count_curve,
)

DIM = 12


def gaussian(num: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, DIM, generator=generator, dtype=torch.float64) + shift


def test_the_limit_of_equal_gaussians_is_nearer_to_zero_than_any_point() -> None:
    curve = sample_count_curve(gaussian(600, 0), gaussian(600, 1))
    assert (curve.counts[0], curve.counts[-1]) == (150, 600)
    assert curve.means[0] > 2 * curve.means[-1]
    assert curve.limit is not None
    assert abs(curve.limit) < curve.means[-1] / 3
    assert curve.slope == pytest.approx(curve.means[-1] * 600, rel=0.3)


def test_the_limit_of_shifted_gaussians_is_their_distance() -> None:
    curve = sample_count_curve(gaussian(800, 0), gaussian(800, 1, shift=1.0))
    assert curve.limit == pytest.approx(DIM, rel=0.1)  # the sets are 3 % off themselves
    assert curve.means[-1] < curve.means[0]


def test_bias_is_that_of_the_facts() -> None:
    """A flat spectrum of 400 features: 0.747 of the trace at 256 clips, 0.394 at 512."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 400, generator=generator, dtype=torch.float64) for _ in range(2))
    curve = sample_count_curve(a, b, counts=(256, 512), num_draws=1)
    assert curve.means[0] / 400 == pytest.approx(0.747, abs=0.02)
    assert curve.means[1] / 400 == pytest.approx(0.394, abs=0.02)
    assert (curve.limit, curve.slope) == (None, None)  # two points make no line


def test_the_whole_set_is_drawn_once_and_gives_its_distance() -> None:
    a, b = gaussian(40, 0), gaussian(40, 1)
    curve = sample_count_curve(a, b, counts=(40, 20))
    assert curve.counts == (20, 40)
    assert curve.means[1] == pytest.approx(float(frechet_distance_from_features(a, b)), rel=1e-9)
    assert curve.deviations[1] is None
    assert curve.deviations[0] != pytest.approx(0)
    assert curve == sample_count_curve(a, b, counts=(40, 20))


def test_counts_are_even_in_their_inverse() -> None:
    counts = default_counts(2048, 400)
    assert (counts[0], counts[-1], len(counts)) == (512, 2048, 8)
    steps = [1 / x - 1 / y for x, y in pairwise(counts)]
    assert max(steps) == pytest.approx(min(steps), rel=0.02)
    assert default_counts(450, 400)[0] == 400
    assert default_counts(32, 400)[0] == 16
    for wrong in ((1, 8), (8, 41)):
        with pytest.raises(ValueError, match="between 2 and 40"):
            sample_count_curve(gaussian(40, 0), gaussian(40, 1), counts=wrong)
