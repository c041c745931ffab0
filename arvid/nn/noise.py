"""Noise processes over token grids: forward process (clean tokens to noise) and denoising steps.

A noise level is 0 for clean tokens and 1 for pure noise. Each latent frame of a clip may have its own level. So one
network learns to denoise whole clips, to generate frame by frame, and everything between (diffusion forcing, arXiv
2407.01392).

| process | tokens | at level σ | prediction target |
|---|---|---|---|
| flow | continuous | (1 - σ)·x + σ·ε | ε - x |
| v | continuous | cos(πσ/2)·x + sin(πσ/2)·ε | cos(πσ/2)·ε - sin(πσ/2)·x |
| mask | ids | each token is MASK with probability σ | the clean id |
| tube | ids | like mask, with the same positions in all frames of a clip (Lumos-1) | the clean id |
| uniform | ids | each token is a random id with probability σ | the clean id |
| metric | ids | a random id, likelier if its code vector is near (`metric_noise.py`) | the clean id |

Levels and the arithmetic of the continuous processes are in float32 for any precision of the network, because in bf16
the smallest levels would be 0. B clips, t latent frames, C channels, K random numbers of a token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import Tokens, UserError
from arvid.nn.draws import draw
from arvid.nn.heads.diffusion_process import sampling_steps

ContinuousNoise = Literal["flow", "v"]
DiscreteNoise = Literal["mask", "tube", "uniform", "metric"]
Level = TypeVar("Level", float, Tensor)


class NoiseProcess(ABC):
    """A noise process: corrupts tokens to a noise level per frame, and defines the levels of sampling."""

    @abstractmethod
    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """Random numbers for `corrupt`, for tokens of shape (B, t, h, w)."""

    @abstractmethod
    def corrupt(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Tokens:
        """The noisy tokens at the level of each frame. At level 1 they do not depend on `tokens`."""

    @abstractmethod
    def levels(self, num_steps: int, shift: float, new_shift: float | None = None) -> list[float]:
        """The num_steps + 1 levels of sampling, in increasing order from 0 to 1.

        Args:
            num_steps: number of denoising steps.
            shift: shift of the levels in training, see `shifted`.
            new_shift: another shift for sampling.

        Raises UserError for a `new_shift` if the process has none.
        """


class GaussianNoise(NoiseProcess):
    """Continuous tokens and Gaussian noise: `flow` (arXiv 2210.02747) or `v` (arXiv 2202.00512).

    The cosine schedule of `v` is the continuous one, whose signal is exactly 0 at level 1.
    """

    def __init__(self, channels: int, kind: ContinuousNoise) -> None:
        self.channels = channels
        self.kind = kind

    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        return _random(torch.randn, [*shape, self.channels], device, generator)

    def corrupt(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Tokens:
        signal, amplitude = self.amplitudes(_as_tokens(level))
        return signal * tokens.float() + amplitude * noise

    def amplitudes(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the token and of the noise at a level."""
        if self.kind == "flow":
            return 1 - level, level
        return (level * (math.pi / 2)).cos(), (level * (math.pi / 2)).sin()

    def target(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t h w c"]:
        """Prediction target: the velocity of the process."""
        if self.kind == "flow":
            return noise - tokens.float()
        signal, amplitude = self.amplitudes(_as_tokens(level))
        return signal * noise - amplitude * tokens.float()

    def step(
        self,
        noisy: Float[Tensor, "b n h w c"],
        prediction: Float[Tensor, "b n h w c"],
        level: Float[Tensor, " n"],
        next_level: Float[Tensor, " n"],
    ) -> Float[Tensor, "b n h w c"]:
        """The tokens at the next level: an Euler step (`flow`), or a deterministic DDIM step (`v`)."""
        now, then = _as_tokens(level[None]), _as_tokens(next_level[None])
        if self.kind == "flow":
            return noisy + (then - now) * prediction
        signal, amplitude = self.amplitudes(now)
        next_signal, next_amplitude = self.amplitudes(then)
        # Invert x = s·x0 + a·ε, v = s·ε - a·x0, where s² + a² = 1.
        token = signal * noisy - amplitude * prediction
        noise = amplitude * noisy + signal * prediction
        return next_signal * token + next_amplitude * noise

    def levels(self, num_steps: int, shift: float, new_shift: float | None = None) -> list[float]:
        if self.kind == "v":
            if new_shift is not None:
                raise UserError("flow_shift is for the flow process; this model's noise is v.")
            return [shifted(k / num_steps, shift) for k in range(num_steps + 1)]
        steps = sampling_steps("flow", num_steps, shift, new_shift)
        return [0.0, *(step.time / 1000 for step in reversed(steps))]


class TokenNoise(NoiseProcess):
    """Noise on ids: each is replaced by MASK or by a random id, with the level as probability.

    Args:
        num_ids: size of the vocabulary. MASK has the id `num_ids`.
        kind: "mask", "tube" or "uniform", see the table above.
    """

    def __init__(self, num_ids: int, kind: Literal["mask", "tube", "uniform"]) -> None:
        self.num_ids = num_ids
        self.kind = kind

    @property
    def has_mask(self) -> bool:
        """Whether noise is the MASK id, so that `step` fills the positions with the highest scores."""
        return self.kind != "uniform"

    @property
    def num_states(self) -> int:
        """Number of input ids of the network, MASK included."""
        return self.num_ids + self.has_mask

    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """Uniform numbers. The first decides whether a token is replaced; `uniform` has a second, for the new id."""
        batch, frames, *grid = shape
        if self.kind == "uniform":
            return _random(torch.rand, [batch, frames, *grid, 2], device, generator)
        different = 1 if self.kind == "tube" else frames
        numbers = _random(torch.rand, [batch, different, *grid, 1], device, generator)
        return numbers.expand(-1, frames, -1, -1, -1)

    def corrupt(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Tokens:
        replaced = noise[..., 0] < level[..., None, None]
        if self.kind != "uniform":
            return tokens.masked_fill(replaced, self.num_ids)
        ids = (noise[..., 1] * self.num_ids).long().clamp_max(self.num_ids - 1)
        return torch.where(replaced, ids, tokens)

    def is_masked(self, noisy: Int[Tensor, "b t h w"]) -> Tensor:
        """True at tokens that are not final: MASK tokens, or all tokens without MASK."""
        return noisy == self.num_ids if self.has_mask else torch.ones_like(noisy) == 1

    def step(
        self,
        noisy: Int[Tensor, "b n h w"],
        drawn: Int[Tensor, "b n h w"],
        score: Float[Tensor, "b n h w"],
        level: Float[Tensor, " n"],
        next_level: Float[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "b n h w"]:
        """The tokens at the next level. `drawn` are clean ids sampled from the network's prediction.

        `mask` and `tube`: a share of `next_level` of each frame stays masked, but at least one token is filled. The
        masked positions with the highest `score` are filled (MaskGIT, arXiv 2202.04200). `uniform`: each token becomes
        the drawn one with probability 1 - next_level / level, which reverses the process.
        """
        if self.kind == "uniform":
            jump = (1 - next_level / level.clamp_min(1e-9))[:, None, None]
            return torch.where(uniform_like(noisy, generator) < jump, drawn, noisy)
        masked = self.is_masked(noisy).flatten(2)  # (B, n, L)
        # At least one token stays masked until the last step, where next_level is 0.
        wanted = (next_level * masked.shape[-1]).floor().clamp_min((next_level > 0).float())
        left = torch.minimum(wanted.long(), masked.sum(-1) - 1)  # (B, n)
        score = score.flatten(2).masked_fill(~masked, math.inf)
        # argsort of argsort: the rank of each score, 0 for the lowest
        rank = score.argsort(dim=-1).argsort(dim=-1)
        stays = masked & (rank < left[..., None])
        filled = torch.where(masked, drawn.flatten(2), noisy.flatten(2))
        return filled.masked_fill(stays, self.num_ids).view_as(noisy)

    def levels(self, num_steps: int, shift: float, new_shift: float | None = None) -> list[float]:
        """`mask`, `tube`: cosine schedule, which fills few tokens at first. `uniform`: even steps."""
        shares = [k / num_steps for k in range(num_steps + 1)]
        if self.has_mask:
            shares = [math.sin(math.pi / 2 * share) for share in shares]
        return [shifted(share, shift) for share in shares]


def shifted(level: Level, shift: float) -> Level:
    """The level moved towards noise: s·σ / (1 + (s - 1)·σ)."""
    return shift * level / (1 + (shift - 1) * level)


def uniform_like(x: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, ...]:
    """Uniform numbers in the shape of `x`."""
    return torch.rand(x.shape, device=x.device, generator=generator)


def gumbel_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Samples of the standard Gumbel distribution in the shape of `x`."""
    # -log(-log u); the clamps keep both logarithms finite.
    uniform = uniform_like(x, generator)
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()


def _random(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """Random numbers from `generator`, or by `arvid.nn.draws` without one."""
    sample = partial(function, device=device, generator=generator)
    return sample(shape) if generator else draw(sample, shape)


def _as_tokens(level: Float[Tensor, "b t"]) -> Float[Tensor, "b t 1 1 1"]:
    """Levels of frames in float32, with axes to broadcast over continuous tokens."""
    return level.float()[..., None, None, None]
