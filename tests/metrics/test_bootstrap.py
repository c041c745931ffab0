"""The bootstrap: its values are the distances of the drawn clips, its interval holds the number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arvid.metrics import bootstrap
from arvid.metrics.bootstrap import (
    bootstrap_distances,
    bootstrap_interval,
    bootstrap_std,
)
from arvid.metrics.frechet import frechet_distance_from_features


def gaussian(num: int, seed: int, dim: int = 4, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) + shift


def one_by_one(a: Tensor, b: Tensor, num: int, ddof: int) -> Tensor:
    """The distance of the clips of each draw, made of nothing that other draws use."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(num):
        i, j = (torch.randint(len(x), (len(x),), generator=generator) for x in (a, b))
        found.append(frechet_distance_from_features(a[i], b[j], ddof))
    return torch.stack(found)


def features(kind: str, num: int, dim: int, seed: int) -> Tensor:
    x = gaussian(num, seed, dim)
    if kind == "ill-conditioned":  # deviations over six decades
        return x * torch.logspace(0, -6, dim, dtype=x.dtype) + 0.1 * seed
    if kind == "sparse":  # columns that one clip carries, or none
        chance = torch.linspace(0, 4 / num, dim)
        return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < chance)
    if kind == "repeated":  # every clip three times
        return x[torch.arange(num) % (num // 3)]
    if kind == "low rank":
        return x[:, : dim // 4] @ gaussian(dim // 4, 9, dim)
    return x + 0.1 * seed


@pytest.mark.parametrize("kind", ["plain", "ill-conditioned", "sparse", "repeated", "low rank"])
@pytest.mark.parametrize("sizes", [(90, 90, 16), (24, 30, 40), (120, 20, 32)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_draws_are_the_distances_of_the_drawn_clips(
    kind: str, sizes: tuple[int, int, int], ddof: int
) -> None:
    n, m, dim = sizes
    a, b = features(kind, n, dim, 0).float(), features(kind, m, dim, 1).float()
    found = bootstrap_distances(a, b, num=6, ddof=ddof)
    torch.testing.assert_close(found, one_by_one(a, b, 6, ddof), rtol=1e-11, atol=1e-12)


def test_fewer_draws_are_the_first_of_more() -> None:
    a, b = gaussian(30, 0, shift=0.5), gaussian(20, 1)
    many = bootstrap_distances(a, b, num=12)
    torch.testing.assert_close(many[:5], bootstrap_distances(a, b, num=5), rtol=0, atol=0)
    assert bootstrap_std(a, b, num=5) == float(many[:5].std())


def test_a_direction_that_is_not_drawn_takes_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the way around it, the Cholesky factor of such a draw would be rounding noise or fail."""
    a, b = features("sparse", 90, 16, 0), features("sparse", 90, 16, 1)
    exact = bootstrap_distances(a, b, num=6)
    monkeypatch.setattr(bootstrap, "_MIN_PIVOT", math.inf)
    torch.testing.assert_close(exact, bootstrap_distances(a, b, num=6), rtol=1e-11, atol=1e-12)


def test_the_same_clips_have_draws_around_a_small_distance() -> None:
    x = gaussian(200, 0)
    draws = bootstrap_distances(x, x, num=10)
    assert (draws >= 0).all()
    assert float(draws.max()) < 0.5
    assert float(bootstrap_distances(x[:2], x[:2], num=20).min()) == pytest.approx(0, abs=1e-12)


def test_one_clip_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 clips in each set, got 1"):
        bootstrap_distances(gaussian(1, 0), gaussian(5, 1), num=2)


def test_std_matches_the_std_of_independent_samples() -> None:
    draws = [
        float(
            frechet_distance_from_features(
                gaussian(400, 2 * i, dim=2, shift=2.0), gaussian(400, 2 * i + 1, dim=2)
            )
        )
        for i in range(100)
    ]
    a, b = gaussian(400, 0, dim=2, shift=2.0), gaussian(400, 1, dim=2)
    std = bootstrap_std(a, b, num=200)
    assert std == pytest.approx(float(torch.tensor(draws).std()), rel=0.3)
    assert std == bootstrap_std(a, b, num=200)


def test_interval_contains_the_distance_and_fits_independent_samples() -> None:
    a, b = gaussian(300, 0, shift=0.5), gaussian(300, 1)
    value = float(frechet_distance_from_features(a, b))
    draws = bootstrap_distances(a, b, num=100)
    found = bootstrap_interval(value, draws, level=0.9)
    assert found.low < value < found.high
    fresh = torch.tensor(
        [
            float(
                frechet_distance_from_features(
                    gaussian(300, 100 + 2 * i, shift=0.5), gaussian(300, 101 + 2 * i)
                )
            )
            for i in range(100)
        ]
    )
    width = float(fresh.quantile(0.95) - fresh.quantile(0.05))
    assert found.high - found.low == pytest.approx(width, rel=0.4)
    narrow = bootstrap_interval(value, draws, level=0.5)
    assert narrow.high - narrow.low < found.high - found.low
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval(value, draws, level=1.0)
