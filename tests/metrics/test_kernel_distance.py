"""Kernel distances against sums written out, and against what they must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvid.metrics import kernel_distance
from arvid.metrics.kernel_distance import jedi_distance, kernel_video_distance


def features(num: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 5, generator=generator, dtype=torch.float64) + shift


def kernels(a: Tensor, b: Tensor, degree: int, constant: float) -> list[list[float]]:
    def kernel(x: Tensor, y: Tensor) -> float:
        inner = sum(p * q for p, q in zip(x.tolist(), y.tolist(), strict=True))
        return float((inner / len(x) + constant) ** degree)

    return [[kernel(x, y) for y in b] for x in a]


def test_kvd_is_the_unbiased_estimate() -> None:
    a, b = features(4), features(6, 0.3, seed=1)
    within = []
    for x in (a, b):
        values = kernels(x, x, 3, 1.0)
        num = len(x)
        off = sum(values[i][j] for i in range(num) for j in range(num) if i != j)
        within.append(off / (num * (num - 1)))
    across = sum(map(sum, kernels(a, b, 3, 1.0))) / 24
    found = kernel_video_distance(a, b)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_jedi_is_the_plain_mean_times_a_hundred() -> None:
    a, b = features(4), features(6, 0.3, seed=1)
    means = [
        sum(map(sum, kernels(x, y, 2, 0.0))) / (len(x) * len(y))
        for x, y in ((a, a), (b, b), (a, b))
    ]
    expected = 100 * (means[0] + means[1] - 2 * means[2])
    assert float(jedi_distance(a, b)) == pytest.approx(expected, rel=1e-10)


def test_value_that_videojedi_states_for_its_example() -> None:
    """Its mmd_polynomial.py gives it rounded, without the factor 100."""
    a = torch.arange(1, 10).view(3, 3)
    b = torch.tensor([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    assert float(jedi_distance(a, b)) / 100 == pytest.approx(270.7, abs=0.05)


def test_equal_distributions_lie_around_zero_and_others_above() -> None:
    values = [
        float(kernel_video_distance(features(40, seed=2 * i), features(40, seed=2 * i + 1)))
        for i in range(60)
    ]
    assert min(values) < 0 < max(values)
    spread = float(torch.tensor(values).std())
    assert abs(sum(values) / 60) < 4 * spread / 60**0.5
    shifted = [float(kernel_video_distance(features(40), features(40, s, 1))) for s in (1.0, 2.0)]
    assert 3 * spread < shifted[0] < shifted[1]
    assert float(jedi_distance(features(40), features(40))) == pytest.approx(0, abs=1e-10)


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(11), features(7, seed=1)
    whole = float(kernel_video_distance(a, b))
    monkeypatch.setattr(kernel_distance, "_ROWS_AT_ONCE", 3)
    assert float(kernel_video_distance(a, b)) == pytest.approx(whole, rel=1e-12)


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 clips in each set, got 1 and 5"):
        kernel_video_distance(features(1), features(5))
    with pytest.raises(ValueError, match="got 0 and 5"):
        jedi_distance(features(0), features(5))
