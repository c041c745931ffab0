"""Sampling of masked prediction: set by set, in any order.

Ids (MaskGIT, arXiv 2202.04200): each evaluation samples all unknown tokens, and keeps those of the highest confidence.
Continuous tokens have no probability, so they are sampled in a random order (MAR, arXiv 2406.11838).

B clips, N tokens of each, K known tokens, M unknown tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import Request, SamplingOptions
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.masking import (
    given_first,
    random_orders,
    rank_by_confidence,
    read_tokens,
    write_tokens,
)
from arvid.options import option
from arvid.paradigms.masked.schedule import masked_after
from arvid.ranges import at_least

if TYPE_CHECKING:
    from arvid.paradigms.masked.paradigm import Masked


@dataclass(frozen=True, kw_only=True)
class MaskedSampling(SamplingOptions):
    """Sampling options of masked prediction."""

    num_sets: int | None = option(None, at_least(1))
    """Number of sets of tokens, one evaluation each; by default that of the model."""
    choice_temperature: float = option(4.5, at_least(0))
    """Discrete tokens: scale of the Gumbel noise on the log-probabilities that decide which tokens stay. It falls
    linearly to 0 at the last set. 0 always keeps the most likely tokens; a large value makes the order random."""
    guidance_ramp: bool = False
    """Guidance rises from 1 to `guidance` with the share of known tokens, as in MAR and Muse. By default it is
    constant."""


@dataclass(frozen=True)
class ClipSampler:
    """Generates one batch of clips."""

    model: Masked
    context: Float[Tensor, "pb s d"]
    """Context tokens of each guidance pass, one after another."""
    frame_conditions: Float[Tensor, "pb t d"] | None
    """Embedded conditions per frame."""
    options: MaskedSampling
    request: Request

    def fill(self, tokens: Tensor, num_given: int) -> Tensor:
        """Sample all tokens (B, N[, C]) of clips after the first `num_given`, which are given."""
        num_unknown = tokens.shape[1] - num_given
        order, known = self._first_order(tokens, num_given), num_given
        masked = masked_after(num_unknown, self.options.num_sets or self.model.num_sets)
        for i, left in enumerate(masked):
            size = tokens.shape[1] - left - known
            guided = self._guided(1 - max(left, 1) / num_unknown)
            if isinstance(self.model.head, CategoricalHead):
                noise = self.options.choice_temperature * (1 - (i + 1) / len(masked))
                values, order = self._surest(tokens, order, known, guided, noise)
                values = values[:, :size]
            else:
                hidden, null = self._hidden(tokens, order[:, :known], order[:, known:][:, :size])
                values = self.model.head.sample(
                    hidden, options=guided, null_hidden=null, generator=self.request.generator
                )
            tokens = write_tokens(tokens, order[:, known : known + size], values)
            known += size
            self.request.on_step()
        return tokens

    def _first_order(self, tokens: Tensor, num_given: int) -> Int[Tensor, "b n"]:
        """Positions of the given tokens, then of the others: random for continuous tokens, raster order for ids.

        (`_surest` sorts the positions of ids anew for each set.)
        """
        batch, num = tokens.shape[:2]
        if isinstance(self.model.head, CategoricalHead):
            return torch.arange(num, device=tokens.device).expand(batch, -1)
        rest = random_orders(batch, num - num_given, tokens.device, self.request.generator)
        return given_first(rest, num_given)

    def _hidden(
        self, tokens: Tensor, known: Int[Tensor, "b k"], wanted: Int[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"] | None]:
        """Conditional hidden states at the wanted positions and, with guidance, unconditional ones."""
        seen = read_tokens(tokens, known)
        hidden = self.model.network(
            self.context, seen, known, wanted, tokens.shape[1], self.frame_conditions
        )
        given, *null = hidden.split(len(tokens))
        return given, null[0] if null else None

    def _surest(
        self, tokens: Tensor, order: Tensor, known: int, options: MaskedSampling, noise: float
    ) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b n"]]:
        """Ids of all unknown positions by falling confidence, and the order with these positions sorted in this way."""
        head, generator = self.model.head, self.request.generator
        assert isinstance(head, CategoricalHead)
        unknown = order[:, known:]
        hidden, null = self._hidden(tokens, order[:, :known], unknown)
        ids, confidence = head.sample_with_confidence(
            hidden, options=options, null_hidden=null, generator=generator
        )
        rank = rank_by_confidence(confidence, noise, generator)
        return ids.gather(1, rank), torch.cat([order[:, :known], unknown.gather(1, rank)], dim=1)

    def _guided(self, share: float) -> MaskedSampling:
        """The options with the guidance of a set, after which a `share` of the tokens is known (in MAR never all)."""
        if not self.options.guidance_ramp:
            return self.options
        return self.options.replace(guidance=1 + (self.options.guidance - 1) * share)
