"""Noise schedules of the diffusion head: training tables, steps of the samplers, guidance.

The schedules are those of diffusers' schedulers. A step is linear in the noisy token, the prediction and new noise, so
here it is three numbers, and sampling reads no tensors of a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import SamplingOptions, UserError
from arvid.lasting import lasting
from arvid.options import option
from arvid.ranges import SHARE, above, at_least, between

NUM_TRAIN_STEPS = 1000
Process = Literal["ddpm", "flow"]


@dataclass(frozen=True, kw_only=True)
class DiffusionSampling(SamplingOptions):
    """Sampling options of continuous tokens."""

    diffusion_steps: int = option(25, between(1, NUM_TRAIN_STEPS))
    """Continuous tokens: denoising steps for each set of tokens."""
    guidance_trunc: float = option(0.0, at_least(0))
    """Continuous tokens: no guidance at diffusion times (1000 to 0) below this value."""
    guidance_renorm: float = option(1.0, SHARE)
    """Continuous tokens: scale guided predictions down to the norm of conditional ones, by this factor at the lowest.
    The norms are over the sampled tokens. In NOVA's published code, and with `whole_noise`, they include the noise at
    other positions, so the effect is weaker."""
    noise_temperature: float = option(1.0, at_least(0))
    """Continuous tokens, DDPM: factor of the noise that each denoising step adds. Below 1, tokens vary less."""
    flow_shift: float | None = option(None, above(0))
    """Continuous tokens, flow matching: shift of the sampler's times towards noise; by default as in training."""


def with_head(evaluations: dict[str, int], options: SamplingOptions) -> dict[str, int]:
    """Evaluations by network, those of a diffusion head included: it follows each evaluation of the first network."""
    if not isinstance(options, DiffusionSampling):
        return evaluations
    num = next(iter(evaluations.values()))
    return {**evaluations, "diffusion head": num * options.diffusion_steps}


@dataclass(frozen=True)
class Step:
    """One denoising step: x becomes keep · x + output · prediction + noise · N(0, 1)."""

    time: float
    """0 to 1000, as the network's input."""
    keep: float
    """Factor of x."""
    output: float
    """Factor of the prediction."""
    noise: float
    """Standard deviation of new noise."""

    def mean(self, x: Tensor, prediction: Tensor) -> Tensor:
        """The token after the step, without new noise."""
        return self.keep * x.float() + self.output * prediction


@dataclass(frozen=True)
class PublishedStep(Step):
    """A step of DDPM in the order of operations and the precision of diffusers.

    Its coefficients are float32 tensors without axes. In half precision torch rounds them otherwise than numbers of
    Python.
    """

    signal: Tensor
    """√ᾱ: factor of the clean token in the noisy one."""
    amplitude: Tensor
    """√(1-ᾱ): factor of the noise in the noisy token."""
    of_token: Tensor
    """Factor of the predicted clean token in the mean."""
    of_noisy: Tensor
    """Factor of x in the mean."""
    deviation: Tensor
    """`noise`."""

    def mean(self, x: Tensor, prediction: Tensor) -> Tensor:
        token = (x - self.amplitude * prediction) / self.signal
        return self.of_token * token + self.of_noisy * x


def training_table(process: Process, shift: float) -> tuple[Tensor, Tensor]:
    """Time and noise level of each training step, (1000,) in float32: ᾱ for `ddpm`, decreasing σ for `flow`."""
    if process == "ddpm":
        levels = _ddpm().alphas_cumprod
        return torch.arange(NUM_TRAIN_STEPS, dtype=torch.float32), levels
    scheduler = _flow(shift)
    return scheduler.timesteps, scheduler.sigmas[:NUM_TRAIN_STEPS]


@lru_cache
def sampling_steps(
    process: Process,
    num_steps: int,
    shift: float = 1.0,
    new_shift: float | None = None,
    *,
    as_published: bool = False,
) -> tuple[Step, ...]:
    """The denoising steps from noise to token.

    Args:
        process: `ddpm` or `flow`.
        num_steps: number of steps. `ddpm` takes every (1000 // num_steps)-th time, so a divisor of 1000 is best.
        shift: shift of the flow process in training.
        new_shift: another shift for sampling.
        as_published: `PublishedStep` for `ddpm`. A step changes ᾱ by little, so in float32 1 - ᾱ_t / ᾱ_next loses
            digits: coefficients differ by 5e-6 of their value for 25 steps, 4e-5 for 128.

    Raises UserError for `ddpm` with more than 500 steps or with a new shift.
    """
    if process == "ddpm" and new_shift is not None:
        raise UserError("flow_shift is for the flow process; this model's is ddpm, which has none.")
    with lasting():
        if process == "ddpm":
            return _published_steps(num_steps) if as_published else _ddpm_steps(num_steps)
        return _flow_steps(num_steps, shift, new_shift)


def _ddpm_steps(num_steps: int) -> tuple[Step, ...]:
    """Ancestral sampling (arXiv 2006.11239, equations 7 and 15) with the posterior variance."""
    times, alphas = _ddpm_times(num_steps), _ddpm().alphas_cumprod.double().tolist()
    steps = []
    for time, alpha, next_alpha in _successive(times, alphas, 1.0):
        of_token, of_noisy, variance = _posterior(alpha, next_alpha, math.sqrt)
        # Equation 15 gives x0 from the predicted noise: x0 = (x - √(1-ᾱ) ε) / √ᾱ. Collect the factors of x and ε.
        steps.append(
            Step(
                time=float(time),
                keep=of_token / math.sqrt(alpha) + of_noisy,
                output=-of_token * math.sqrt((1 - alpha) / alpha),
                noise=math.sqrt(max(variance, 1e-20)),
            )
        )
    return tuple(steps)


def _published_steps(num_steps: int) -> tuple[Step, ...]:
    """The steps of `_ddpm_steps` as diffusers computes them: by torch in float32, whose roots are off by a last bit."""

    def root(x: Tensor) -> Tensor:
        return x**0.5

    alphas, one = _ddpm().alphas_cumprod, torch.ones((), device="cpu")
    usual = _ddpm_steps(num_steps)
    levels = _successive(_ddpm_times(num_steps), alphas, one)
    steps = []
    for step, (_, alpha, next_alpha) in zip(usual, levels, strict=True):
        of_token, of_noisy, variance = _posterior(alpha, next_alpha, root)
        steps.append(
            PublishedStep(
                **vars(step),
                signal=root(alpha),
                amplitude=root(1 - alpha),
                of_token=of_token,
                of_noisy=of_noisy,
                deviation=root(variance.clamp_min(1e-20)),
            )
        )
    return tuple(steps)


def _ddpm_times(num_steps: int) -> list[int]:
    """The times of the steps, decreasing. Raises UserError for more than 500."""
    if num_steps > NUM_TRAIN_STEPS // 2:  # k would be 1: the first time would not be pure noise
        raise UserError(
            f"DDPM takes every k-th of {NUM_TRAIN_STEPS} times, so at most {NUM_TRAIN_STEPS // 2} diffusion steps, "
            f"not {num_steps}."
        )
    scheduler = _ddpm()
    scheduler.set_timesteps(num_steps)
    times: list[int] = scheduler.timesteps.tolist()
    return times


def _successive(times: Sequence[int], alphas: Any, last: Any) -> Iterator[tuple[int, Any, Any]]:
    """Each time with its ᾱ and the ᾱ of the next time; `last` after the last one."""
    after = [*(alphas[time] for time in times[1:]), last]
    return zip(times, (alphas[time] for time in times), after, strict=True)


def _posterior(alpha: Any, next_alpha: Any, root: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Equation 7: posterior mean = of_token · x0 + of_noisy · x, and the variance; in the type of ᾱ."""
    ratio = alpha / next_alpha
    of_token = root(next_alpha) * (1 - ratio) / (1 - alpha)
    of_noisy = root(ratio) * (1 - next_alpha) / (1 - alpha)
    variance = (1 - next_alpha) / (1 - alpha) * (1 - ratio)
    return of_token, of_noisy, variance


def _flow_steps(num_steps: int, shift: float, new_shift: float | None) -> tuple[Step, ...]:
    """Euler steps along the predicted velocity."""
    scheduler = _flow(shift)
    if new_shift is not None:
        scheduler.set_shift(new_shift)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    return tuple(
        Step(time=time, keep=1.0, output=after - sigma, noise=0.0)
        for time, sigma, after in zip(
            scheduler.timesteps.tolist(), sigmas[:-1], sigmas[1:], strict=True
        )
    )


def guide(
    predictions: Float[Tensor, "p b n c"], options: DiffusionSampling, image_guidance: float = 0.0
) -> Tensor:
    """Combine the predictions of P passes by guidance, as in NOVA's released code (arXiv 2412.14169).

    The passes are: with the condition, with the negative context, with the frames but without text. The last or the
    last two may be absent. `image_guidance` is the scale of image guidance, which needs all three.
    """
    if len(predictions) == 1:
        return predictions[0]
    given, null = predictions[:2]
    # Two passes: classifier-free guidance, null + s · (given - null).
    if len(predictions) == 2:
        return _renormed(null + options.guidance * (given - null), given, options.guidance_renorm)
    # Three passes: text guidance from the frames-only pass to the conditional one, plus image guidance.
    image = predictions[2]
    guided = null + options.guidance * (given - image)
    guided = _renormed(guided, given, options.guidance_renorm)
    return guided + image_guidance * (image - null)


def _renormed(guided: Tensor, given: Tensor, least: float) -> Tensor:
    """Scale guided predictions (B, N, C) down to the norm of the conditional ones, by a factor of at least `least`."""
    if least >= 1:
        return guided
    ratio = given.flatten(1).norm(dim=1) / guided.flatten(1).norm(dim=1)
    return guided * ratio.clamp(least, 1)[:, None, None]


def diffusers_scheduler(process: Process, shift: float) -> Any:
    """The diffusers scheduler that defines a process."""
    return _ddpm() if process == "ddpm" else _flow(shift)


def _ddpm() -> Any:
    from diffusers import DDPMScheduler  # slow to import

    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


def _flow(shift: float) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler  # slow to import, with scipy

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_STEPS, shift=shift)
