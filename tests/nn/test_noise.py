"""Noise processes: the noise at a level, and denoising steps back to the tokens."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from arvid.contracts import UserError
from arvid.nn.noise import ContinuousNoise, DiscreteNoise, GaussianNoise, TokenNoise, shifted

SHAPE = (2, 3, 4, 5)
CPU = torch.device("cpu")
LEVEL = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.6, 1.0]])
KINDS: list[ContinuousNoise] = ["flow", "v"]
MASKS: list[DiscreteNoise] = ["mask", "tube"]


@pytest.mark.parametrize("kind", KINDS)
def test_levels_go_from_the_tokens_to_noise(kind: ContinuousNoise) -> None:
    process = GaussianNoise(6, kind)
    tokens, noise = torch.randn(*SHAPE, 6), process.draw(SHAPE, CPU)
    clean = process.corrupt(tokens, noise, torch.zeros(2, 3))
    pure = process.corrupt(tokens, noise, torch.ones(2, 3))
    assert torch.equal(clean, tokens)
    torch.testing.assert_close(pure, noise, rtol=0, atol=1e-6)


def test_flow_and_v_are_their_formulas() -> None:
    tokens, noise = torch.randn(*SHAPE, 6), torch.randn(*SHAPE, 6)
    for i, j in ((0, 1), (1, 2)):
        level, x, e = LEVEL[i, j].item(), tokens[i, j], noise[i, j]
        flow, v = GaussianNoise(6, "flow"), GaussianNoise(6, "v")
        cos, sin = math.cos(math.pi / 2 * level), math.sin(math.pi / 2 * level)
        for process, noisy, target in (
            (flow, (1 - level) * x + level * e, e - x),
            (v, cos * x + sin * e, cos * e - sin * x),
        ):
            torch.testing.assert_close(process.corrupt(tokens, noise, LEVEL)[i, j], noisy)
            torch.testing.assert_close(process.target(tokens, noise, LEVEL)[i, j], target)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_the_true_prediction_stay_on_the_path(kind: ContinuousNoise) -> None:
    """Frames may go to different levels in one step."""
    process = GaussianNoise(6, kind)
    tokens, noise = torch.randn(*SHAPE, 6), process.draw(SHAPE, CPU)
    level, after = LEVEL[0], torch.tensor([0.0, 0.45, 0.2])
    noisy = process.corrupt(tokens, noise, level.expand(2, -1))
    target = process.target(tokens, noise, level.expand(2, -1))
    stepped = process.step(noisy, target, level, after)
    expected = process.corrupt(tokens, noise, after.expand(2, -1))
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-5)


def test_flow_samples_at_the_levels_of_diffusers() -> None:
    for shift in (1.0, 3.0):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(7)
        levels = GaussianNoise(4, "flow").levels(7, shift)
        assert levels[::-1] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_v_has_no_flow_shift() -> None:
    assert GaussianNoise(4, "v").levels(4, 1.0) == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(UserError, match="flow_shift"):
        GaussianNoise(4, "v").levels(4, 1.0, 2.0)


def test_shifted_levels() -> None:
    assert shifted(0.5, 4.0) == pytest.approx(0.8)
    assert shifted(torch.tensor([0.0, 1.0]), 4.0).tolist() == [0, 1]


@pytest.mark.parametrize("kind", MASKS)
def test_masks_hide_the_share_of_the_level(kind: DiscreteNoise) -> None:
    process = TokenNoise(9, kind)
    tokens = torch.randint(9, (8, 3, 16, 16))
    level = torch.tensor([0.0, 0.3, 1.0]).expand(8, -1)
    noisy = process.corrupt(tokens, process.draw(tokens.shape, CPU), level)
    hidden = noisy == 9
    assert torch.equal(hidden, process.is_masked(noisy))
    assert hidden.float().mean((0, 2, 3)).tolist() == pytest.approx([0, 0.3, 1], abs=0.03)
    assert torch.equal(noisy[~hidden], tokens[~hidden])


def test_tubes_hide_the_same_places_of_all_frames() -> None:
    tokens = torch.zeros(4, 3, 8, 8, dtype=torch.long)
    level = torch.full((4, 3), 0.5)
    places = {}
    for kind in MASKS:
        process = TokenNoise(9, kind)
        places[kind] = process.corrupt(tokens, process.draw(tokens.shape, CPU), level) == 9
    assert torch.equal(places["tube"], places["tube"][:, :1].expand(-1, 3, -1, -1))
    assert not torch.equal(places["mask"][:, 0], places["mask"][:, 1])


def test_a_step_keeps_the_highest_scores_and_known_tokens() -> None:
    process = TokenNoise(9, "mask")
    noisy = torch.tensor([[9, 9, 3, 9], [9, 9, 9, 9]]).view(1, 2, 2, 2)
    drawn = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]).view(1, 2, 2, 2)
    score = torch.tensor([[-1.0, -3.0, -9.0, -2.0], [-4.0, -3.0, -2.0, -1.0]]).view(1, 2, 2, 2)
    after = process.step(noisy, drawn, score, torch.tensor([0.75, 1.0]), torch.tensor([0.3, 0.5]))
    assert after.flatten(2)[0].tolist() == [[5, 9, 3, 8], [9, 9, 3, 4]]


def test_steps_of_masks_end_without_any() -> None:
    """Each step fills at least one token. The number of masked tokens follows MaskGIT's cosine schedule."""
    process = TokenNoise(9, "mask")
    noisy = torch.full((2, 1, 8, 8), 9)
    levels = process.levels(8, 1.0)
    counts = []
    for k in range(8, 0, -1):
        level, after = (torch.tensor([levels[i]]) for i in (k, k - 1))
        drawn = torch.randint(9, noisy.shape)
        noisy = process.step(noisy, drawn, torch.rand(noisy.shape), level, after)
        counts.append(int((noisy[0] == 9).sum()))
    assert counts == [math.floor(64 * math.cos(math.pi / 2 * i / 8) + 1e-6) for i in range(1, 9)]


def test_the_reverse_of_uniform_noise_has_its_distribution() -> None:
    """A step from level 0.8 to 0.2 with the true ids leaves as many random ids as corrupting to level 0.2."""
    process = TokenNoise(100, "uniform")
    tokens = torch.full((4, 1, 64, 64), 50)
    noise = process.draw(tokens.shape, CPU)
    before, after = torch.tensor([0.8]), torch.tensor([0.2])
    noisy = process.corrupt(tokens, noise, before.expand(4, -1))
    stepped = process.step(noisy, tokens, torch.zeros(tokens.shape), before, after)
    changed = (stepped != 50).float().mean().item()
    assert changed == pytest.approx(0.2 * 0.99, abs=0.01)
    done = process.step(noisy, tokens, torch.zeros(tokens.shape), before, torch.zeros(1))
    assert torch.equal(done, tokens)
    assert process.is_masked(noisy).all()
