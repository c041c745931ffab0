"""MAR's diffusion head (arXiv 2406.11838, released code LTH14/mar): DDPM with a learned variance.

The network predicts the noise, and for each number a value v that interpolates the logarithm of a step's variance
between its bounds (arXiv 2102.09672, equation 15): v = -1 is the posterior's variance, v = 1 is β. The loss is the
squared error of the noise plus the variational bound in bits. The bound gives no gradient to the predicted noise.
Different from the release: gates and output are not initialised to zero.

R repeats, B clips, N tokens, C numbers of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import SamplingOptions, UserError
from arvid.nn.heads.diffusion import DiffusionHead, Form, WholeFrame
from arvid.nn.heads.diffusion_process import NUM_TRAIN_STEPS, DiffusionSampling, Step

HALF_LEVEL = 1 / 255
"""Half the distance of two levels of an 8-bit image in [-1, 1]. The bound of the last step uses it. Latents have no
levels, but the release keeps this part of pixel models."""
LEAST_MASS = 1e-12
"""Smallest probability in a logarithm."""


@dataclass(frozen=True)
class LearnedStep(Step):
    """A denoising step whose noise has a learned variance."""

    low: float
    """Logarithm of the least variance: the posterior's."""
    high: float
    """Logarithm of the largest variance: β."""


class LearnedVarianceHead(DiffusionHead):
    """A `DiffusionHead` with MAR's network, loss and sampler.

    Args:
        dim, channels, width, depth, repeats: see DiffusionHead.
    """

    form: ClassVar[Form] = "mar"
    _table: Tensor

    def __init__(
        self, dim: int, channels: int, *, width: int, depth: int, repeats: int = 4
    ) -> None:
        super().__init__(dim, channels, width=width, depth=depth, process="ddpm", repeats=repeats)
        self.register_buffer("_table", _training_rows().view(torch.int32), persistent=False)

    def _rows(self, index: Tensor) -> Tensor:
        """Coefficients (5, R, B, N, 1) of training times with these indices (R, B, N).

        They are √ᾱ, √(1-ᾱ), the token's coefficient in the posterior's mean, and the logarithms of both variances.
        """
        return self._table.view(torch.float32)[:, index, None]

    def _corrupt(
        self, tokens: Tensor, noise: Tensor, index: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        signal, amplitude, *_ = self._rows(index)
        return signal * tokens + amplitude * noise, noise

    def _errors(self, predicted: Tensor, goal: Tensor, target: Tensor, index: Tensor) -> Tensor:
        noise, v = predicted.chunk(2, dim=-1)
        signal, amplitude, of_token, low, high = self._rows(index)
        # Error of the token, x₀ - x̂₀, from the error of the noise: x₀ = (x - √(1-ᾱ) ε) / √ᾱ.
        error = amplitude / signal * (noise.detach() - goal)
        log_variance = low + (v + 1) / 2 * (high - low)
        # The posterior's means differ by the token's coefficient times its error, since both have the same x.
        bound = _kl(of_token * error, low, log_variance)
        at_last = _level_loss(target, target - error, log_variance)
        bound = torch.where((index == 0)[..., None], at_last, bound) / math.log(2)
        return (noise - goal).square() + bound

    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        image_hidden: Float[Tensor, "b n d"] | None = None,
        image_guidance: float = 0.0,
        generator: torch.Generator | None = None,
        frame: WholeFrame | None = None,
    ) -> Float[Tensor, "b n c"]:
        """As `DiffusionHead.sample`. Raises UserError for a `frame`: MAR draws noise for the sampled tokens only."""
        if frame is not None:
            raise UserError(
                "MAR's diffusion head draws no noise for whole frames: leave out whole_noise and as_published."
            )
        return super().sample(
            hidden,
            options=options,
            null_hidden=null_hidden,
            image_hidden=image_hidden,
            image_guidance=image_guidance,
            generator=generator,
        )

    def _steps(self, options: DiffusionSampling, *, as_published: bool = False) -> tuple[Step, ...]:
        if options.flow_shift is not None:
            raise UserError(
                "flow_shift is for the flow process; this model's is ddpm, which has none."
            )
        return learned_steps(options.diffusion_steps)

    def _deviation(self, step: Step, predicted: Float[Tensor, "p b n k"]) -> Tensor:
        assert isinstance(step, LearnedStep)
        # From the conditional pass: the variance is not guided.
        v = predicted[0, ..., self.channels :]
        return (0.5 * (step.low + (v + 1) / 2 * (step.high - step.low))).exp()


@lru_cache
def learned_steps(num_steps: int) -> tuple[LearnedStep, ...]:
    """Steps of ancestral sampling at `num_steps` evenly spaced times, from the last time to the first."""
    spacing = (NUM_TRAIN_STEPS - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    times = [round(i * spacing) for i in range(num_steps)]
    levels = [_alphas()[time] for time in times]
    steps = [
        LearnedStep(
            time=float(time),
            keep=row.of_noisy + row.of_token / row.signal,
            output=-row.of_token * row.amplitude / row.signal,
            noise=float(i > 0),  # the last step adds none
            low=row.low,
            high=row.high,
        )
        for i, (time, row) in enumerate(zip(times, _process(levels), strict=True))
    ]
    return tuple(reversed(steps))


@dataclass(frozen=True)
class _Row:
    """Coefficients of a step: x_t = signal · x₀ + amplitude · ε, posterior mean = of_token · x₀ + of_noisy · x_t.

    `low` and `high` are the logarithms of the posterior's variance and of β.
    """

    signal: float
    amplitude: float
    of_token: float
    of_noisy: float
    low: float
    high: float


def _process(levels: list[float]) -> list[_Row]:
    """The rows of a process with these ᾱ, first time first (arXiv 2006.11239, equation 7)."""
    rows = []
    for before, level in pairwise([1.0, *levels]):
        beta = 1 - level / before
        variance = beta * (1 - before) / (1 - level)
        rows.append(
            _Row(
                signal=math.sqrt(level),
                amplitude=math.sqrt(1 - level),
                of_token=beta * math.sqrt(before) / (1 - level),
                of_noisy=(1 - before) * math.sqrt(level / before) / (1 - level),
                low=math.log(variance) if variance else -math.inf,
                high=math.log(beta),
            )
        )
    # The posterior of the first time has variance 0, so its logarithm is replaced by that of the second.
    if len(rows) > 1:
        rows[0] = _Row(**{**vars(rows[0]), "low": rows[1].low})
    return rows


@lru_cache
def _alphas() -> tuple[float, ...]:
    """ᾱ of the squared-cosine process with β of at most 0.999, in float64. (diffusers computes it in float32.)"""

    def level(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    found, product = [], 1.0
    for i in range(NUM_TRAIN_STEPS):
        product *= 1 - min(1 - level((i + 1) / NUM_TRAIN_STEPS) / level(i / NUM_TRAIN_STEPS), 0.999)
        found.append(product)
    return tuple(found)


def _training_rows() -> Float[Tensor, "5 steps"]:
    rows = _process(list(_alphas()))
    return torch.tensor(
        [[r.signal, r.amplitude, r.of_token, r.low, r.high] for r in rows]
    ).T.contiguous()


def _kl(difference: Tensor, log_variance: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats of two normal distributions, from the difference of their means.

    `log_variance` is of the first distribution, `other` of the second.
    """
    ratio = log_variance - other
    return 0.5 * (ratio.exp() - 1 - ratio + difference.square() * (-other).exp())


def _level_loss(values: Tensor, means: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood in nats of 8-bit levels: the normal distribution's mass within half a level of a value.

    The lowest and the highest level (values beyond ±0.999) also get the mass of the tail.
    """
    centred, inverse = values - means, (-0.5 * log_variance).exp()
    above = _cumulative(inverse * (centred + HALF_LEVEL))
    below = _cumulative(inverse * (centred - HALF_LEVEL))
    mass = torch.where(values > 0.999, 1 - below, above - below)
    mass = torch.where(values < -0.999, above, mass)
    return -mass.clamp_min(LEAST_MASS).log()


def _cumulative(x: Tensor) -> Tensor:
    """Standard normal CDF, by the tanh approximation that is usual for GELU."""
    return 0.5 * (1 + F.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
