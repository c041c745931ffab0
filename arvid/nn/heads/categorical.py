"""Softmax over the vocabulary, with temperature, top-k and top-p filters that never leave the device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import SamplingOptions, TokenHead


class CategoricalHead(TokenHead):
    """Hidden states (B, N, D) -> logits (B, N, V), without bias (as NBP has it)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(dim, vocab_size, bias=False)

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Int[Tensor, "b n"],
        weight: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Cross-entropy in nats of each token, times its weight."""
        logits = self.logits(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        loss = loss.view(target.shape)
        return loss if weight is None else loss * weight

    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "b n"]:
        logits = self.logits(hidden).float()
        if null_hidden is not None:
            null = self.logits(null_hidden).float()
            logits = null + options.guidance * (logits - null)
        return sample_logits(logits, options, generator)


def sample_logits(
    logits: Float[Tensor, "b n v"],
    options: SamplingOptions,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b n"]:
    """Draw an id per position: temperature, then top-k, then top-p, then one multinomial draw."""
    if options.temperature == 0:
        return logits.argmax(-1)
    logits = logits / options.temperature
    if options.top_k is not None or options.top_p is not None:
        logits = logits.masked_fill(~kept_tokens(logits, options.top_k, options.top_p), -torch.inf)
    probabilities = logits.softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator)
    return drawn.view(logits.shape[:2])


def kept_tokens(
    logits: Float[Tensor, "b n v"], top_k: int | None, top_p: float | None
) -> Bool[Tensor, "b n v"]:
    """Which tokens survive: those not below the k-th logit (ties stay), and of these, in falling order,
    each whose predecessors hold at most mass p."""
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None and top_k < logits.shape[-1]:
        keep = logits >= logits.topk(top_k, dim=-1).values[..., -1:]
    if top_p is not None:
        ordered = logits.masked_fill(~keep, -torch.inf).softmax(-1).sort(-1, descending=True)
        before = ordered.values.cumsum(-1) - ordered.values
        keep = keep & torch.zeros_like(keep).scatter(-1, ordered.indices, before <= top_p)
    return keep
