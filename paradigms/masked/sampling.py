"""How a masked model draws a clip: set by set, in whatever order.

Ids (MaskGIT, arXiv 2202.04200): each evaluation draws all unknown tokens, and the surest of them stay. Continuous
tokens have no probability, so they are drawn in a random order (MAR, arXiv 2406.11838).

B clips, N tokens of each, K known ones, M unknown ones.
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
    """Sets of tokens that a clip is generated in; by default as the model was built."""
    choice_temperature: float = option(4.5, at_least(0))
    """Discrete tokens: Gumbel noise on the log-probabilities by which tokens are kept. It falls linearly to 0 at the
    last set. 0 always keeps the likeliest tokens; a large value makes the order random."""
    guidance_ramp: bool = False
    """Guidance rises from 1 to `guidance` with the share of tokens that are drawn, as in MAR and Muse. By default it is
    constant."""


@dataclass(frozen=True)
class ClipSampler:
    """One generation."""

    model: Masked
    context: Float[Tensor, "pb s d"]
    """Of each pass of guidance, one after another."""
    frame_conditions: Float[Tensor, "pb t d"] | None
    """Embedded conditions per frame."""
    options: MaskedSampling
    request: Request

    def fill(self, tokens: Tensor, num_given: int) -> Tensor:
        """The tokens (B, N[, C]) of whole clips, of which the first `num_given` are known."""
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
        """Positions of the given tokens and then of the others: at random, or as ids lie, which choose their order."""
        batch, num = tokens.shape[:2]
        if isinstance(self.model.head, CategoricalHead):
            return torch.arange(num, device=tokens.device).expand(batch, -1)
        rest = random_orders(batch, num - num_given, tokens.device, self.request.generator)
        return given_first(rest, num_given)

    def _hidden(
        self, tokens: Tensor, known: Int[Tensor, "b k"], wanted: Int[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"] | None]:
        """Hidden states at the wanted positions, and the unconditional ones if there is guidance."""
        seen = read_tokens(tokens, known)
        hidden = self.model.network(
            self.context, seen, known, wanted, tokens.shape[1], self.frame_conditions
        )
        given, *null = hidden.split(len(tokens))
        return given, null[0] if null else None

    def _surest(
        self, tokens: Tensor, order: Tensor, known: int, options: MaskedSampling, noise: float
    ) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b n"]]:
        """Ids for all unknown positions, the surest first, and the order with these positions sorted likewise."""
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
        """The options with the guidance of a set after which `share` of the tokens is drawn; in MAR never all."""
        if not self.options.guidance_ramp:
            return self.options
        return self.options.replace(guidance=1 + (self.options.guidance - 1) * share)
