"""Noise processes over token grids: how clean tokens become noise, frame by frame, and how they are got back.

A level is 0 for clean tokens and 1 for pure noise. Each latent frame of a clip may have another one, so that one
network learns to denoise whole clips, to generate frame by frame, and what lies between (diffusion forcing, arXiv
2407.01392).

| process | tokens | at level σ | prediction |
|---|---|---|---|
| flow | continuous | (1 - σ)·x + σ·ε | ε - x |
| v | continuous | cos(πσ/2)·x + sin(πσ/2)·ε | cos(πσ/2)·ε - sin(πσ/2)·x |
| mask | ids | each token is MASK with probability σ | the clean id |
| tube | ids | the same, at the same places in all frames of a clip (Lumos-1) | the clean id |
| uniform | ids | each token is a random id with probability σ | the clean id |

Levels and the arithmetic of the continuous processes are in float32, whatever the network's precision: in bf16 the
smallest levels would be 0. B clips, t latent frames, C channels, K random numbers of a token.
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

from arvid.contracts import Tokens, TokenSpec, UserError
from arvid.nn.draws import draw
from arvid.nn.heads.diffusion_process import sampling_steps

ContinuousNoise = Literal["flow", "v"]
DiscreteNoise = Literal["mask", "tube", "uniform"]
Level = TypeVar("Level", float, Tensor)


class NoiseProcess(ABC):
    """Corrupts tokens at a level per frame, and takes a step from one level to the next."""

    @abstractmethod
    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """The random numbers that `corrupt` takes for tokens of a shape (B, t, h, w)."""

    @abstractmethod
    def corrupt(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Tokens:
        """The tokens at the level of each frame. At level 1 they are pure noise, whatever the tokens are."""

    @abstractmethod
    def levels(self, num_steps: int, shift: float, new_shift: float | None = None) -> list[float]:
        """The levels that sampling goes through, from 0 to 1, for so many steps.

        Args:
            shift: that the model was trained with, see `shifted`.
            new_shift: another one for sampling. Raises UserError where a process cannot have it.
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
        """Of the token and of the noise."""
        if self.kind == "flow":
            return 1 - level, level
        return (level * (math.pi / 2)).cos(), (level * (math.pi / 2)).sin()

    def target(
        self, tokens: Tokens, noise: Float[Tensor, "b t h w k"], level: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t h w c"]:
        """What is to be predicted."""
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
        """The tokens at the next level: an Euler step (`flow`), or one of DDIM without fresh noise (`v`)."""
        now, then = _as_tokens(level[None]), _as_tokens(next_level[None])
        if self.kind == "flow":
            return noisy + (then - now) * prediction
        signal, amplitude = self.amplitudes(now)
        next_signal, next_amplitude = self.amplitudes(then)
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
    """Ids of which each is replaced, with the level as probability, by MASK or by a random id.

    Args:
        num_ids: size of the vocabulary. MASK is the id behind them.
        kind: see the module.
    """

    def __init__(self, num_ids: int, kind: DiscreteNoise) -> None:
        self.num_ids = num_ids
        self.kind = kind

    @property
    def num_states(self) -> int:
        """How many ids the network must know, MASK included."""
        return self.num_ids if self.kind == "uniform" else self.num_ids + 1

    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """Uniform numbers: one decides whether a token is replaced, and the other of `uniform` by which id."""
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
        """True where a token is still to be drawn: everywhere, where no MASK tells."""
        return torch.ones_like(noisy) == 1 if self.kind == "uniform" else noisy == self.num_ids

    def step(
        self,
        noisy: Int[Tensor, "b n h w"],
        drawn: Int[Tensor, "b n h w"],
        score: Float[Tensor, "b n h w"],
        level: Float[Tensor, " n"],
        next_level: Float[Tensor, " n"],
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "b n h w"]:
        """The tokens at the next level, where `drawn` are clean ids drawn from the network's prediction.

        Masks: of the ids drawn at masked places those of the highest `score` stay, and a share of `next_level` of each
        frame stays masked, but at least one token less than before (MaskGIT, arXiv 2202.04200). `uniform`: each token
        becomes the drawn one with probability 1 - next_level / level, which is the reverse of the process.
        """
        if self.kind == "uniform":
            jump = (1 - next_level / level.clamp_min(1e-9))[:, None, None]
            uniform = torch.rand(noisy.shape, device=noisy.device, generator=generator)
            return torch.where(uniform < jump, drawn, noisy)
        masked = self.is_masked(noisy).flatten(2)  # (B, n, L)
        wanted = (next_level * masked.shape[-1]).floor().clamp_min((next_level > 0).float())
        left = torch.minimum(wanted.long(), masked.sum(-1) - 1)  # (B, n)
        score = score.flatten(2).masked_fill(~masked, math.inf)
        rank = score.argsort(dim=-1).argsort(dim=-1)
        stays = masked & (rank < left[..., None])
        filled = torch.where(masked, drawn.flatten(2), noisy.flatten(2))
        return filled.masked_fill(stays, self.num_ids).view_as(noisy)

    def levels(self, num_steps: int, shift: float, new_shift: float | None = None) -> list[float]:
        """Masks: the cosine schedule, few tokens at first; `uniform`: even steps."""
        shares = [k / num_steps for k in range(num_steps + 1)]
        if self.kind != "uniform":
            shares = [math.sin(math.pi / 2 * share) for share in shares]
        return [shifted(share, shift) for share in shares]


def build_noise(
    spec: TokenSpec, continuous: ContinuousNoise, discrete: DiscreteNoise
) -> GaussianNoise | TokenNoise:
    """The process for a kind of tokens."""
    if spec.type == "continuous":
        return GaussianNoise(spec.size, continuous)
    return TokenNoise(spec.size, discrete)


def shifted(level: Level, shift: float) -> Level:
    """The level moved towards noise: s·σ / (1 + (s - 1)·σ)."""
    return shift * level / (1 + (shift - 1) * level)


def gumbel_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of Gumbel's distribution in the shape of `x`."""
    uniform = torch.rand(x.shape, device=x.device, generator=generator)
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()


def _random(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """With a generator its numbers, else those of `arvid.nn.draws`."""
    sample = partial(function, device=device, generator=generator)
    return sample(shape) if generator else draw(sample, shape)


def _as_tokens(level: Float[Tensor, "b t"]) -> Float[Tensor, "b t 1 1 1"]:
    """Levels of frames, to be broadcast over the numbers of continuous tokens."""
    return level.float()[..., None, None, None]
