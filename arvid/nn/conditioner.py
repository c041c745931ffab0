"""Conditions: from captions, labels and scores to context tokens.

The `Conditioner` belongs to the run (it is equal for all paradigms of a comparison) and makes a `Condition`;
the `ContextEmbedder` belongs to a paradigm and turns that into context tokens of its width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, UserError
from arvid.nn.positions import ScalarEmbedding
from arvid.nn.text import TextEncoder

logger = logging.getLogger(__name__)


class Conditioner(nn.Module):
    """Which of a clip's captions, labels, motion scores and frame rates the model sees.

    Args:
        text: encoder of the captions, or None to ignore them.
        label: whether the class label is a condition.
        motion: whether the motion score is one.
        fps: whether the frames per second are one.
        num_classes: number of class labels in the data (0: none).
    """

    def __init__(
        self,
        *,
        text: TextEncoder | None = None,
        label: bool = False,
        motion: bool = False,
        fps: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if label and num_classes == 0:
            raise UserError("The class label is a condition, but this dataset has no classes.")
        self.text = text
        self.label = label
        self.motion = motion
        self.fps = fps
        self.num_classes = num_classes

    @property
    def spec(self) -> ContextSpec:
        return ContextSpec(
            text_dim=self.text.dim if self.text else None,
            text_len=self.text.num_tokens if self.text else 0,
            text_vocab=self.text.vocab_size if self.text else None,
            num_classes=self.num_classes if self.label else None,
            motion=self.motion,
            fps=self.fps,
        )

    def forward(
        self,
        *,
        caption: Sequence[str] | None = None,
        label: Tensor | None = None,
        motion: Tensor | None = None,
        fps: Tensor | None = None,
        negative: Sequence[str] | None = None,
    ) -> Condition:
        """The condition of a batch; what is not given, or not a condition here, is absent.

        `label` is -1, `motion` and `fps` are NaN where unknown. Guidance leads away from the `negative` prompts.
        """
        condition = Condition()
        if self.text is not None and caption is not None:
            condition.text, condition.text_mask = self.text(caption)
        if self.text is not None and negative is not None:
            condition.negative_text, condition.negative_text_mask = self.text(negative)
        if self.label and label is not None:
            if int(label.max()) >= self.num_classes:
                raise UserError(
                    f"Label {int(label.max())} is unknown: this model knows labels "
                    f"0 to {self.num_classes - 1}."
                )
            condition.label = label
        if self.motion and motion is not None:
            condition.motion = motion
        if self.fps and fps is not None:
            condition.fps = fps
        return condition

    def from_batch(self, batch: dict[str, Any]) -> Condition:
        """The condition of a batch of the datamodule."""
        return self(**{key: batch[key] for key in ("caption", "label", "motion", "fps")})


class ContextEmbedder(nn.Module):
    """Condition -> context tokens (B, S, D): text, label, motion, fps; S = `spec.num_tokens` always.

    Whatever is absent, padded or dropped becomes a learned null token, so there is nothing to mask, and
    the null condition of classifier-free guidance is trained. (NOVA fills padding the same way, but from a
    fixed random table.)
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
        if spec.num_classes is not None:
            self.label = nn.Embedding(spec.num_classes, dim)
        if spec.motion:
            self.motion = ScalarEmbedding(dim)
        if spec.fps:
            self.fps = ScalarEmbedding(dim)
        null = torch.randn(spec.num_tokens, dim) * 0.02
        self.null = nn.Parameter(null, requires_grad=spec.num_tokens > 0)

    def forward(
        self, condition: Condition, batch_size: int, drop: Tensor | None = None
    ) -> Float[Tensor, "b s d"]:
        """`drop` (B,) is True where the whole condition is replaced by the null one."""
        null = self.null.expand(batch_size, -1, -1)
        if not self.spec.num_tokens:
            return null
        tokens, known = self._tokens(condition, null)
        if drop is not None:
            known = known & ~drop[:, None]
        return torch.where(known[..., None], tokens, null)

    def guided(
        self, condition: Condition, batch_size: int, guidance: float
    ) -> Float[Tensor, "gb s d"]:
        """Context for sampling: (B, S, D), or (2B, S, D) with the null half behind if there is guidance."""
        context: Tensor = self(condition, batch_size)
        if guidance == 1:
            return context
        if not self.spec.num_tokens:
            warn_once("Guidance has no effect: this model has no conditions.")
            return context
        return torch.cat([context, self.negative(condition, batch_size)])

    def negative(self, condition: Condition, batch_size: int) -> Float[Tensor, "b s d"]:
        """What guidance leads away from: the negative text if there is one, else the null condition."""
        context: Tensor = self(negative_condition(condition), batch_size)
        return context

    def _tokens(self, condition: Condition, null: Tensor) -> tuple[Tensor, Tensor]:
        """All context tokens (B, S, D), null ones in the place of absent fields, and which are known."""
        start = 0
        tokens, known = [], []
        for part, mask, num in self._parts(condition):
            if part is None or mask is None:
                part = null[:, start : start + num]
                mask = torch.zeros(part.shape[:2], dtype=torch.bool, device=null.device)
            tokens.append(part)
            known.append(mask)
            start += num
        return torch.cat(tokens, 1), torch.cat(known, 1)

    def _parts(self, condition: Condition) -> list[tuple[Tensor | None, Tensor | None, int]]:
        """Tokens, mask and number of tokens of each kind of condition, in order."""
        parts: list[tuple[Tensor | None, Tensor | None, int]] = []
        if self.spec.text_dim is not None:
            text, known = condition.text, condition.text_mask
            if known is not None and self.spec.text_vocab is not None:
                known = torch.ones_like(known)  # padding has an id of its own
            if text is not None:
                text = self.text(text.to(self.null.dtype) if text.is_floating_point() else text)
            parts.append((text, known, self.spec.text_len))
        if self.spec.num_classes is not None:
            parts.append(_single(self.label, condition.label, lambda x: x >= 0))
        if self.spec.motion:
            parts.append(_single(self.motion, condition.motion, torch.isfinite))
        if self.spec.fps:
            parts.append(_single(self.fps, condition.fps, torch.isfinite))
        return parts


@cache
def warn_once(message: str) -> None:
    """Tell what would not be noticed, the first time only."""
    logger.warning("%s", message)


def negative_condition(condition: Condition) -> Condition:
    """A condition of the negative text alone; empty if there is none."""
    return Condition(text=condition.negative_text, text_mask=condition.negative_text_mask)


def _single(
    embed: nn.Module, value: Tensor | None, is_known: Any
) -> tuple[Tensor | None, Tensor | None, int]:
    """One context token made from a scalar; unknown values are embedded as 0 and masked."""
    if value is None:
        return None, None, 1
    known = is_known(value)
    token = embed(torch.where(known, value, torch.zeros_like(value)))
    return token[:, None], known[:, None], 1
