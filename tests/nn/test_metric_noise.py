"""The metric path: its distribution at each level, and the jump process that reverses it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from arvid.codes import ScalarCodes
from arvid.contracts import TokenSpec, UserError
from arvid.nn import metric_noise
from arvid.nn.metric_noise import EXPONENT, SCALE, MetricNoise, build_noise

LEVELS = (5, 3)
V = 15
CODES = ScalarCodes(LEVELS)
CPU = torch.device("cpu")
MANY = 20_000


def probabilities(token: int, level: float) -> Tensor:
    """(V,) from the formula, in float64."""
    table = normalize(CODES.vectors(torch.arange(V)).double(), dim=-1)
    distance = (table - table[token]).square().sum(-1)
    return (-SCALE * ((1 - level) / level) ** EXPONENT * distance).softmax(-1)


def shares(ids: Tensor) -> Tensor:
    return torch.bincount(ids.flatten(), minlength=V).double() / ids.numel()


def distance(first: Tensor, second: Tensor) -> float:
    """Total variation."""
    return float((first - second).abs().sum() / 2)


@pytest.mark.parametrize("level", [1.0, 0.7, 0.3])
def test_noisy_ids_have_the_distribution_of_the_path(level: float) -> None:
    process, token = MetricNoise(V, CODES), 13
    tokens = torch.full((1, 1, MANY, 1), token)
    noise = process.draw(tokens.shape, CPU, torch.Generator().manual_seed(0))
    noisy = process.corrupt(tokens, noise, torch.full((1, 1), level))
    # the standard error of a share of 20,000 is below 0.0036
    assert distance(shares(noisy), probabilities(token, level)) < 0.02


def test_clean_tokens_stay_and_pure_noise_does_not_know_them() -> None:
    process = MetricNoise(V, CODES)
    tokens = torch.arange(V).view(1, 1, 3, 5)
    noise = process.draw(tokens.shape, CPU)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    assert torch.equal(process.corrupt(tokens, noise, zero), tokens)
    others = process.corrupt(tokens.flip(-1), noise, one)
    assert torch.equal(process.corrupt(tokens, noise, one), others)


def test_levels_of_frames_are_their_own() -> None:
    process, tokens = MetricNoise(V, CODES), torch.full((1, 2, 50, 50), 3)
    noise = process.draw(tokens.shape, CPU)
    noisy = process.corrupt(tokens, noise, torch.tensor([[0.05, 1.0]]))
    kept = (noisy == tokens).float().mean((0, 2, 3))
    assert kept[0] > 0.9
    assert kept[1] < 0.12


def test_jumps_with_the_true_prediction_stay_on_the_path() -> None:
    """From noise to level 0.4 in many steps, the ids have the distribution of `corrupt` at 0.4."""
    process, generator = MetricNoise(V, CODES), torch.Generator().manual_seed(0)
    clean = torch.full((1, 1, MANY, 1), 13)
    noise = process.draw(clean.shape, CPU, generator)
    ids = process.corrupt(clean, noise, torch.ones(1, 1))
    path = torch.linspace(1.0, 0.4, 201)
    for level, after in zip(path[:-1, None], path[1:, None], strict=True):
        ids = process.step(ids, clean, clean.float(), level, after, generator)
    assert distance(shares(ids), probabilities(13, 0.4)) < 0.03


def test_the_last_step_takes_the_prediction() -> None:
    process = MetricNoise(V, CODES)
    noisy, drawn = torch.randint(V, (2, 3, 4, 5)), torch.randint(V, (2, 3, 4, 5))
    level, after = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.0, 0.4, 0.0])
    stepped = process.step(noisy, drawn, drawn.float(), level, after)
    assert torch.equal(stepped[:, [0, 2]], drawn[:, [0, 2]])
    assert not torch.equal(stepped[:, 1], drawn[:, 1])


def test_a_large_vocabulary_is_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    process, tokens = MetricNoise(V, CODES), torch.randint(V, (2, 3, 4, 5))
    noise, level = process.draw(tokens.shape, CPU), torch.full((2, 3), 0.5)
    whole = process.corrupt(tokens, noise, level)
    monkeypatch.setattr(metric_noise, "CHUNK", 7 * V)
    assert torch.equal(process.corrupt(tokens, noise, level), whole)


def test_ids_without_vectors_are_refused() -> None:
    spec = TokenSpec("discrete", V, (4, 4, 4), True)
    with pytest.raises(UserError, match="needs the code vectors"):
        build_noise(spec, "flow", "metric")
