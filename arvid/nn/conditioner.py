"""From captions and other conditions to context tokens.

The `Conditioner` belongs to the run, is equal for all paradigms of a comparison, and makes a `Condition`. The
`ContextEmbedder` belongs to a paradigm and turns the condition into context tokens of its width.
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
from arvid.nn.text import KnownFeatures, TextEncoder

logger = logging.getLogger(__name__)


class Conditioner(nn.Module):
    """Makes a model's `Condition` from captions and other values.

    Args:
        text: text encoder for captions, or None to ignore captions.
        sizes: other conditions in the order of their context tokens: name -> number of class ids or vector components
            (see `arvid.nn.conditions`).
        tokens: format of the tokenizer's tokens, which gives the frames of each latent frame for conditions per frame.
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
        """The conditions of a model that is trained with this conditioner."""
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
        known: KnownFeatures | None = None,
    ) -> Condition:
        """The condition of a batch. Conditions that are not given, or that the model does not have, are absent.

        Args:
            caption: caption of each clip.
            negative: negative prompt of each clip, for classifier-free guidance.
            values: other conditions by name, (B[, K]) per clip or (B, T[, K]) per frame.
            known: cached features of the captions, read by `TextEncoder.reader`.

        Raises UserError for values on the CPU that the model does not know (see `check`).
        """
        given = Condition()
        if self.text is not None and caption is not None:
            cached = {} if known is None else {"known": known}
            given.text, given.text_mask = self.text(caption, **cached)
        if self.text is not None and negative is not None:
            given.negative_text, given.negative_text_mask = self.text(negative)
        for name, size in self.sizes.items():
            value = None if values is None else values.get(name)
            if value is not None:
                if value.device.type == "cpu":
                    condition(name).check(value, size)
                given.values[name] = self._grouped(name, value)
        return given

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise UserError for values that the model does not know. Call it before values are moved to a GPU.

        On CPUs `forward` checks its values itself. On GPUs it would have to wait for the device.
        """
        for name, size in self.sizes.items():
            if name in values:
                condition(name).check(values[name], size)

    def _grouped(self, name: str, value: Tensor) -> Tensor:
        kind = condition(name)
        if not kind.per_frame:
            return value
        if self.tokens is None:
            raise ValueError(f"{name} is a condition per frame: Conditioner needs `tokens`")
        return group_frames(value, self.tokens, kind.unknown)

    def from_batch(self, batch: Mapping[str, Any]) -> Condition:
        """The condition of a batch of the datamodule. Raises UserError if the data lacks a condition of the model."""
        missing = [name for name in self.sizes if name not in batch]
        if missing:
            raise UserError(f"The clips of this dataset have no values of {', '.join(missing)}.")
        return self(
            caption=batch["caption"],
            values={name: batch[name] for name in self.sizes},
            known=batch.get("text"),
        )


class ContextEmbedder(nn.Module):
    """Condition -> context tokens (B, S, D) with fixed S = `spec.num_tokens`: text, then one per condition.

    Absent, padded or dropped tokens become learned null tokens. So no mask is needed, and the null condition of
    classifier-free guidance is trained. (NOVA also fills padding, but from a fixed random table.) Conditions per frame
    are not context tokens: see `arvid.nn.frame_conditions`.
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
        """`drop` (B,) is True for clips whose whole condition is replaced by the null condition."""
        null = self.null.expand(batch_size, -1, -1)
        if not self.spec.num_tokens:
            return null
        tokens, known = self._tokens(given, null)
        if drop is not None:
            known = known & ~drop[:, None]
        return torch.where(known[..., None], tokens, null)

    def guided(self, given: Condition, batch_size: int, guided: bool) -> Float[Tensor, "gb s d"]:
        """Context for sampling: (B, S, D); with guidance (2B, S, D), where the second half is the negative context."""
        context: Tensor = self(given, batch_size)
        if not guided:
            return context
        if self.spec.is_empty:
            warn_once("Guidance has no effect: this model has no conditions.")
            return context
        return torch.cat([context, self.negative(given, batch_size)])

    def negative(self, given: Condition, batch_size: int) -> Float[Tensor, "b s d"]:
        """Negative context for guidance: the negative prompt's if there is one, else the null condition's."""
        context: Tensor = self(negative_condition(given), batch_size)
        return context

    def _tokens(self, given: Condition, null: Tensor) -> tuple[Tensor, Tensor]:
        """All context tokens (B, S, D), with null tokens for absent conditions, and a mask (B, S) of known tokens."""
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
                known = torch.ones_like(known)  # padding has its own id, which is embedded
            if text is not None:
                text = self.text(text.to(self.null.dtype) if text.is_floating_point() else text)
            parts.append((text, known, self.spec.text_len))
        parts += [self._single(name, given.values.get(name)) for name in self.spec.conditions]
        return parts

    def _single(self, name: str, value: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
        """One context token. Unknown values (-1, NaN) are embedded as 0 and masked."""
        if value is None:
            return None, None, 1
        known = condition(name).known(value)  # (B,)
        expanded = known[(...,) + (None,) * (value.ndim - known.ndim)]  # (B[, 1])
        token = self.get_submodule(name)(torch.where(expanded, value, torch.zeros_like(value)))
        return token[:, None], known[:, None], 1


@cache
def warn_once(message: str) -> None:
    """Log a warning, but each message only once."""
    logger.warning("%s", message)


def negative_condition(given: Condition) -> Condition:
    """A condition with only the negative prompt as its text; empty if there is none."""
    return Condition(text=given.negative_text, text_mask=given.negative_text_mask)
