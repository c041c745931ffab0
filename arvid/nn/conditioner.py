"""Conditions: from captions and values per clip to context tokens.

The `Conditioner` belongs to the run (it is equal for all paradigms of a comparison) and makes a `Condition`;
the `ContextEmbedder` belongs to a paradigm and turns that into context tokens of its width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, TokenSpec, UserError
from arvid.nn.conditions import condition
from arvid.nn.frame_conditions import group_frames
from arvid.nn.text import TextEncoder

logger = logging.getLogger(__name__)


class Conditioner(nn.Module):
    """Which of a clip's caption and other conditions the model sees.

    Args:
        text: encoder of the captions, or None to ignore them.
        sizes: the other conditions in the order of their context tokens: name -> number of class ids or of a vector's
            components (see `arvid.nn.conditions`).
        tokens: what the tokenizer emits; says which frames lie behind a latent frame, for conditions per frame.
    """

    def __init__(
        self,
        *,
        text: TextEncoder | None = None,
        sizes: Mapping[str, int] | None = None,
        tokens: TokenSpec | None = None,
    ) -> None:
        super().__init__()
        self.text = text
        self.sizes = dict(sizes or {})
        self.tokens = tokens

    @property
    def spec(self) -> ContextSpec:
        per_frame = {name: size for name, size in self.sizes.items() if condition(name).per_frame}
        return ContextSpec(
            text_dim=self.text.dim if self.text else None,
            text_len=self.text.num_tokens if self.text else 0,
            text_vocab=self.text.vocab_size if self.text else None,
            conditions={n: size for n, size in self.sizes.items() if n not in per_frame},
            frame_conditions=per_frame,
            frames_per_latent=self.tokens.strides[0] if self.tokens else 1,
        )

    def forward(
        self,
        *,
        caption: Sequence[str] | None = None,
        negative: Sequence[str] | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> Condition:
        """The condition of a batch; what is not given, or not a condition here, is absent.

        Args:
            caption: text of each clip.
            negative: negative prompt of each clip, for classifier-free guidance.
            values: of the other conditions by name, (B[, K]) per clip or (B, T[, K]) per frame.

        Raises UserError for values that the model does not know.
        """
        given = Condition()
        if self.text is not None and caption is not None:
            given.text, given.text_mask = self.text(caption)
        if self.text is not None and negative is not None:
            given.negative_text, given.negative_text_mask = self.text(negative)
        for name, size in self.sizes.items():
            value = None if values is None else values.get(name)
            if value is not None:
                condition(name).check(value, size)
                given.values[name] = self._grouped(name, value)
        return given

    def _grouped(self, name: str, value: Tensor) -> Tensor:
        kind = condition(name)
        if not kind.per_frame:
            return value
        if self.tokens is None:
            raise ValueError(f"{name} is a condition per frame: say what the tokenizer emits")
        return group_frames(value, self.tokens, kind.unknown)

    def from_batch(self, batch: Mapping[str, Any]) -> Condition:
        """The condition of a batch of the datamodule. Raises UserError for data without a condition of this model."""
        missing = [name for name in self.sizes if name not in batch]
        if missing:
            raise UserError(f"The clips of this dataset have no values of {', '.join(missing)}.")
        return self(caption=batch["caption"], values={name: batch[name] for name in self.sizes})


class ContextEmbedder(nn.Module):
    """Condition -> context tokens (B, S, D): text, then one for each condition per clip; S = `spec.num_tokens` always.

    Whatever is absent, padded or dropped becomes a learned null token, so there is nothing to mask, and
    the null condition of classifier-free guidance is trained. (NOVA fills padding the same way, but from a
    fixed random table.) Conditions per frame are no tokens: see `arvid.nn.frame_conditions`.
    """

    def __init__(self, spec: ContextSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.dim = dim
        self.text: nn.Module
        if spec.text_vocab is not None:
            self.text = nn.Embedding(spec.text_vocab, dim)
        elif spec.text_dim is not None:
            self.text = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.LayerNorm(dim))
        for name, size in spec.conditions.items():
            self.add_module(name, condition(name).embedder(size, dim, 1))
        null = torch.randn(spec.num_tokens, dim) * 0.02
        self.null = nn.Parameter(null, requires_grad=spec.num_tokens > 0)

    def forward(
        self, given: Condition, batch_size: int, drop: Tensor | None = None
    ) -> Float[Tensor, "b s d"]:
        """`drop` (B,) is True where the whole condition is replaced by the null one."""
        null = self.null.expand(batch_size, -1, -1)
        if not self.spec.num_tokens:
            return null
        tokens, known = self._tokens(given, null)
        if drop is not None:
            known = known & ~drop[:, None]
        return torch.where(known[..., None], tokens, null)

    def guided(self, given: Condition, batch_size: int, guidance: float) -> Float[Tensor, "gb s d"]:
        """Context for sampling: (B, S, D), or (2B, S, D) with the null half behind if there is guidance."""
        context: Tensor = self(given, batch_size)
        if guidance == 1:
            return context
        if self.spec.is_empty:
            warn_once("Guidance has no effect: this model has no conditions.")
            return context
        return torch.cat([context, self.negative(given, batch_size)])

    def negative(self, given: Condition, batch_size: int) -> Float[Tensor, "b s d"]:
        """Negative context of guidance: that of the negative prompt if there is one, else the null condition's."""
        context: Tensor = self(negative_condition(given), batch_size)
        return context

    def _tokens(self, given: Condition, null: Tensor) -> tuple[Tensor, Tensor]:
        """All context tokens (B, S, D), null ones in the place of absent conditions, and which are known."""
        start = 0
        tokens, known = [], []
        for part, mask, num in self._parts(given):
            if part is None or mask is None:
                part = null[:, start : start + num]
                mask = torch.zeros(part.shape[:2], dtype=torch.bool, device=null.device)
            tokens.append(part)
            known.append(mask)
            start += num
        return torch.cat(tokens, 1), torch.cat(known, 1)

    def _parts(self, given: Condition) -> list[tuple[Tensor | None, Tensor | None, int]]:
        """Tokens, mask and number of tokens of each condition, in order."""
        parts: list[tuple[Tensor | None, Tensor | None, int]] = []
        if self.spec.text_dim is not None:
            text, known = given.text, given.text_mask
            if known is not None and self.spec.text_vocab is not None:
                known = torch.ones_like(known)  # padding has an id of its own
            if text is not None:
                text = self.text(text.to(self.null.dtype) if text.is_floating_point() else text)
            parts.append((text, known, self.spec.text_len))
        parts += [self._single(name, given.values.get(name)) for name in self.spec.conditions]
        return parts

    def _single(self, name: str, value: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
        """One context token; unknown values are embedded as 0 and masked."""
        if value is None:
            return None, None, 1
        known = condition(name).known(value)  # (B,)
        seen = known[(...,) + (None,) * (value.ndim - known.ndim)]
        token = self.get_submodule(name)(torch.where(seen, value, torch.zeros_like(value)))
        return token[:, None], known[:, None], 1


@cache
def warn_once(message: str) -> None:
    """Tell what would not be noticed, the first time only."""
    logger.warning("%s", message)


def negative_condition(given: Condition) -> Condition:
    """A condition of the negative prompt alone; empty if there is none."""
    return Condition(text=given.negative_text, text_mask=given.negative_text_mask)
