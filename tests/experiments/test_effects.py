"""The two-way analysis of the matrix: known effects are found, noise is not called an effect."""

from __future__ import annotations

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.experiments.effects import Effects, Measured, sentences

ORDERS, TYPES = ("nova", "next_block", "masked", "frame_diffusion"), ("continuous", "discrete")


def cells(
    order: float = 0.0,
    kind: float = 0.0,
    interaction: float = 0.0,
    noise: float = 1.0,
    *,
    seeds: int = 3,
    seed: int = 0,
) -> dict[tuple[str, str], list[Measured]]:
    """Values with known effects, in units of the noise."""
    generator = np.random.default_rng(seed)
    return {
        (o, k): [
            Measured(
                10
                + order * i
                + kind * (k == "discrete")
                + interaction * (i == 1 and k == "discrete")
                + noise * generator.standard_normal(),
                noise,
            )
            for _ in range(seeds)
        ]
        for i, o in enumerate(ORDERS)
        for k in TYPES
    }


def test_shares_without_noise_are_those_of_the_sums_of_squares() -> None:
    shares = Effects(cells(order=2.0, kind=4.0, noise=0.0)).shares
    # squares of 8 cells: orders 2 * 4 * (9 + 1 + 1 + 9) / 4 = 40, types 8 * 4 = 32
    assert shares["order"].value == pytest.approx(40 / 72)
    assert shares["token type"].value == pytest.approx(32 / 72)
    assert shares["interaction"].value == pytest.approx(0, abs=1e-9)
    assert shares["seed"].value == pytest.approx(0, abs=1e-9)


def test_noise_alone_is_no_effect() -> None:
    """Over many tables of noise, the mean share of an effect stays small; a plain share would be 3/23 and more."""
    found = [Effects(cells(seed=seed)).shares["order"].value for seed in range(20)]
    assert np.mean(found) < 0.09


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(60):
        found = Effects(cells(kind=1.0, seed=seed)).type_difference()
        hits += found.low <= -1.0 <= found.high
    assert 50 <= hits <= 60


def test_a_difference_within_noise_is_called_open() -> None:
    effects = Effects(cells(order=5.0, seed=3))
    found = sentences(effects, metric="FD", higher_is_better=False)
    assert "do not differ significantly in FD" in found[1]
    assert found[0].startswith("FD, share of the variance between trainings: order 9")
    assert "The best combination in FD is nova on" in found[-1]


def test_a_clear_difference_names_the_better_type_and_its_size() -> None:
    found = sentences(Effects(cells(kind=8.0)), metric="FD", higher_is_better=False)
    assert "continuous tokens are better than discrete tokens in FD, by 7.8 (95" in found[1]
    found = sentences(Effects(cells(kind=8.0)), metric="accuracy", higher_is_better=True, unit="%")
    assert "discrete tokens are better than continuous tokens in accuracy, by 7.8 %" in found[1]


def test_orders_that_prefer_different_types_are_named() -> None:
    effects = Effects(cells(kind=-6.0, interaction=14.0))
    found = " ".join(sentences(effects, metric="FD", higher_is_better=False))
    assert "nova, masked, frame_diffusion with discrete tokens" in found
    assert "next_block with continuous tokens" in found


def test_one_seed_uses_the_standard_errors_and_says_nothing_of_seeds() -> None:
    effects = Effects(cells(kind=8.0, seeds=1))
    assert set(effects.shares) == {"order", "token type", "interaction"}
    difference = effects.type_difference()
    # four orders, each a difference of two values with error 1: 1.96 * sqrt(2 / 4)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.5**0.5, rel=0.1)


def test_an_incomplete_table_is_refused() -> None:
    found = cells()
    del found["nova", "discrete"]
    with pytest.raises(UserError, match="every order with every token type"):
        Effects(found)
    with pytest.raises(UserError, match="at least two orders"):
        Effects({key: value for key, value in cells().items() if key[0] == "nova"})
