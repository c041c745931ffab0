"""Noise on ids that respects the distance of their code vectors: the metric path of URSA (arXiv 2510.24717).

At level σ, with τ = 1 - σ, a token x becomes the id v with probability softmax_v(-β·d(x, v)), where d is the squared
distance of the L2-normalised code vectors and β = c·(τ / (1 - τ))^α. At level 1 all ids are equally likely. So a noisy
token still says roughly where the clean one is, which a MASK does not. (Flow matching with a kinetic-optimal velocity,
arXiv 2412.03487, section 4.) B clips, t latent frames, V ids, d numbers of a code vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from arvid.codes import Codes
from arvid.contracts import TokenSpec, UserError
from arvid.nn.noise import ContinuousNoise, DiscreteNoise, GaussianNoise, TokenNoise, uniform_like

SCALE, EXPONENT = 3.0, 0.9
"""c and α of β; defaults of URSA's code (baaivision/URSA)."""
MIN_TIME = 1e-3
"""Smallest τ of a sampling step: β grows infinitely fast at 0."""
CHUNK = 2**24
"""Numbers of the largest (tokens, V) array, 64 MiB."""


class MetricNoise(TokenNoise):
    """The metric path over the ids of a tokenizer whose code vectors are known."""

    def __init__(self, num_ids: int, codes: Codes) -> None:
        super().__init__(num_ids, "uniform")
        self.codes = codes

    def draw(
        self, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """One uniform number per token: the position in the cumulated probabilities of the new id."""
        return super().draw(shape, device, generator)[..., :1]

    def corrupt(
        self,
        tokens: Int[Tensor, "b t h w"],
        noise: Float[Tensor, "b t h w k"],
        level: Float[Tensor, "b t"],
    ) -> Int[Tensor, "b t h w"]:
        level = level.float()[..., None, None].expand(tokens.shape)
        rate = _rate(1 - level).flatten()
        table, ids, uniform = self._table(tokens.device), tokens.flatten(), noise[..., 0].flatten()
        noisy = torch.empty_like(ids)
        for part in self._parts(len(ids)):
            weights = (-rate[part, None] * _distances(table, ids[part])).softmax(-1)
            noisy[part] = _pick(weights, uniform[part])
        # Ids whose vectors have one direction cannot be told apart at level 0, so clean tokens are taken as they are.
        return torch.where(level > 0, noisy.view_as(tokens), tokens)

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

        A jump process whose marginals are those of `corrupt`. The rate from x to v, towards a clean id y, is
        p(v | y) · β' · max(d(y, x) - d(y, v), 0): a token only jumps nearer to y. A step to level 0 takes `drawn`.
        """
        time = (1 - level.float()).clamp_min(MIN_TIME)[:, None, None]
        passed = (level - next_level).float()[:, None, None]
        rate, growth, passed = (
            value.expand(noisy.shape).flatten() for value in (_rate(time), _growth(time), passed)
        )
        whether, where = (uniform_like(noisy, generator).flatten() for _ in range(2))
        table, before, clean = self._table(noisy.device), noisy.flatten(), drawn.flatten()
        after = torch.empty_like(before)
        for part in self._parts(len(before)):
            distance = _distances(table, clean[part])  # (tokens, V) to the clean id
            gain = (distance.gather(1, before[part, None]) - distance).clamp_min(0)
            rates = (-rate[part, None] * distance).softmax(-1) * gain * growth[part, None]
            jumps = whether[part] < 1 - (-passed[part] * rates.sum(-1)).exp()
            after[part] = torch.where(jumps, _pick(rates, where[part]), before[part])
        return torch.where(next_level[:, None, None] > 0, after.view_as(noisy), drawn)

    def _table(self, device: torch.device) -> Float[Tensor, "v d"]:
        """The normalised code vectors of all ids."""
        return normalize(self.codes.vectors(torch.arange(self.num_ids, device=device)), dim=-1)

    def _parts(self, num_tokens: int) -> list[slice]:
        size = max(CHUNK // self.num_ids, 1)
        return [slice(start, start + size) for start in range(0, num_tokens, size)]


def build_noise(
    spec: TokenSpec, continuous: ContinuousNoise, discrete: DiscreteNoise
) -> GaussianNoise | TokenNoise:
    """The noise process for a token type. Raises UserError for metric noise without code vectors."""
    if spec.type == "continuous":
        return GaussianNoise(spec.size, continuous)
    if discrete != "metric":
        return TokenNoise(spec.size, discrete)
    if spec.codes is None:
        raise UserError(
            "Metric noise needs the code vectors of the ids, which this tokenizer does not give. Use discrete_noise "
            "uniform or mask."
        )
    return MetricNoise(spec.size, spec.codes)


def _rate(time: Tensor) -> Tensor:
    """β at τ; large, but finite, at 1."""
    return SCALE * (time / (1 - time).clamp_min(1e-6)) ** EXPONENT


def _growth(time: Tensor) -> Tensor:
    """Derivative of β with respect to τ."""
    left = (1 - time).clamp_min(1e-6)
    return SCALE * EXPONENT * (time / left) ** (EXPONENT - 1) / left.square()


def _distances(table: Float[Tensor, "v d"], ids: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
    """Squared distances of the vectors of some ids to those of all ids."""
    squares = table.square().sum(-1)  # 1, or 0 for a vector of zeros
    chosen = table[ids]
    return (squares[ids, None] + squares - 2 * chosen @ table.T).clamp_min(0)


def _pick(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The id at which the cumulated weights pass a uniform share of their sum."""
    cumulated = weights.cumsum(-1)
    wanted = uniform[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp_max(weights.shape[1] - 1)
