"""MAR's diffusion head: process and loss against formulas in float64, sampling against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import Size, TokenSpec, UserError
from arvid.nn.heads import DiffusionOptions, build_head
from arvid.nn.heads.diffusion import DiffusionHead
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.nn.heads.learned_variance import LearnedVarianceHead, learned_steps

SPEC = TokenSpec("continuous", 3, (4, 8, 8), True)


def alphas() -> np.ndarray:
    """ᾱ of the squared-cosine process with β of at most 0.999, in float64."""
    edges = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - edges[1:] / edges[:-1], 0.999))


def posterior(levels: np.ndarray) -> tuple[np.ndarray, ...]:
    """β, both coefficients of the posterior's mean, and its variance, at the first time that of the second."""
    before = np.append(1.0, levels[:-1])
    beta = 1 - levels / before
    variance = beta * (1 - before) / (1 - levels)
    variance[0] = variance[1]
    of_token = beta * np.sqrt(before) / (1 - levels)
    of_noisy = (1 - before) * np.sqrt(1 - beta) / (1 - levels)
    return beta, of_token, of_noisy, variance


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def head() -> LearnedVarianceHead:
    return LearnedVarianceHead(8, 3, width=16, depth=2, repeats=2)


@pytest.mark.parametrize("time", [0, 1, 500, 998])
def test_the_loss_is_squared_error_and_bound(monkeypatch: pytest.MonkeyPatch, time: int) -> None:
    """KL divergence of two normal distributions in bits; at time 0 the mass of a level of 1/127.5."""
    net, hidden = head(), torch.randn(1, 5, 8)
    target, noise = torch.randn(1, 5, 3).clamp(-0.9, 0.9), torch.randn(2, 1, 5, 3)
    predicted = torch.cat([noise + 0.1 * torch.randn(2, 1, 5, 3), torch.rand(2, 1, 5, 3)], dim=-1)
    index = torch.full((2, 1, 5), time)
    monkeypatch.setattr(net, "_draw_times", lambda *_: index)
    monkeypatch.setattr("arvid.nn.heads.diffusion.randn_like", lambda *_, **__: noise)
    monkeypatch.setattr(net.net, "forward", lambda *_: predicted)
    loss = net.loss(hidden, target).detach()

    level = alphas()[time]
    beta, of_token, of_noisy, variance = (a[time] for a in posterior(alphas()))
    x0, eps, guess, v = (
        t.double().numpy() for t in (target, noise, predicted[..., :3], predicted[..., 3:])
    )
    noisy = np.sqrt(level) * x0 + np.sqrt(1 - level) * eps
    guessed = (noisy - np.sqrt(1 - level) * guess) / np.sqrt(level)
    true_mean, mean = (of_token * x + of_noisy * noisy for x in (x0, guessed))
    spread = np.exp((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(variance))
    if time:
        ratio = variance / spread
        bound = 0.5 * (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / spread)
    else:
        high, low = (normal_cdf((x0 - mean + s / 255) / np.sqrt(spread)) for s in (1, -1))
        bound = -np.log(high - low)
    expected = ((guess - eps) ** 2 + bound / np.log(2)).mean((0, -1))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=2e-3 if time < 2 else 1e-4)


def test_the_bound_does_not_move_the_mean() -> None:
    net = head()
    predicted = torch.randn(1, 1, 4, 6, requires_grad=True)
    goal, target = torch.randn(1, 1, 4, 3), torch.randn(1, 1, 4, 3)
    index = torch.full((1, 1, 4), 300)
    net._errors(predicted, goal, target, index).sum().backward()
    gradient = predicted.grad
    assert gradient is not None
    torch.testing.assert_close(gradient[..., :3], 2 * (predicted.detach()[..., :3] - goal))
    assert gradient[..., 3:].abs().min() > 0


@pytest.mark.parametrize("num_steps", [1, 7, 100, 1000])
def test_steps_are_those_of_the_spaced_process(num_steps: int) -> None:
    times = np.round(np.linspace(0, 999, num_steps)).astype(int) if num_steps > 1 else np.array([0])
    levels = alphas()[times]
    steps = learned_steps(num_steps)[::-1]
    assert [step.time for step in steps] == times.tolist()
    if num_steps == 1:
        return
    beta, of_token, of_noisy, variance = posterior(levels)
    signal, amplitude = np.sqrt(levels), np.sqrt(1 - levels)
    np.testing.assert_allclose([s.keep for s in steps], of_token / signal + of_noisy, rtol=1e-9)
    np.testing.assert_allclose([s.output for s in steps], -of_token * amplitude / signal, rtol=1e-9)
    np.testing.assert_allclose([s.low for s in steps], np.log(variance), rtol=1e-9)
    np.testing.assert_allclose([s.high for s in steps], np.log(beta), rtol=1e-9)
    assert [s.noise for s in steps] == [0.0] + [1.0] * (num_steps - 1)


def test_the_best_prediction_draws_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are N(2, 0.3²), and the network is the exact expectation: samples have this mean and deviation."""
    net, levels = head(), alphas()

    def predict(x: Tensor, modulations: list[Tensor], _: object) -> Tensor:
        level = levels[int(modulations[0])]
        noise = math.sqrt(1 - level) * (x - 2 * math.sqrt(level)) / (0.09 * level + 1 - level)
        return torch.cat([noise, -torch.ones_like(noise)], dim=-1)[None]

    monkeypatch.setattr(net, "_modulated", lambda s, _: ((i, [torch.tensor(i.time)]) for i in s))
    monkeypatch.setattr(net, "_predict", predict)
    drawn = draw(net, torch.zeros(1, 1000, 8), diffusion_steps=250)
    assert drawn.mean().item() == pytest.approx(2, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.3, abs=0.02)
    cold = draw(net, torch.zeros(1, 1000, 8), diffusion_steps=250, noise_temperature=0.5)
    assert cold.std().item() < 0.25


def draw(net: DiffusionHead, hidden: Tensor, **options: float) -> Tensor:
    given = DiffusionSampling(**options)  # type: ignore[arg-type]
    return net.sample(hidden, options=given, generator=torch.Generator().manual_seed(0))


def test_what_the_head_lacks_is_refused() -> None:
    size = Size(dim=8, depth=1, num_heads=1, head_dim=16, head_depth=1)
    with pytest.raises(UserError, match=r"set diffusion\.form to nova"):
        build_head(SPEC, size, DiffusionOptions(form="mar", process="flow"))
    net = build_head(SPEC, size, DiffusionOptions(form="mar"))
    assert isinstance(net, LearnedVarianceHead)
    with pytest.raises(UserError, match="flow_shift is for the flow process"):
        draw(net, torch.zeros(1, 2, 8), flow_shift=2.0)
