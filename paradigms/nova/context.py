"""Context tokens as NOVA's released code makes them (arXiv 2412.14169): text ‖ label ‖ motion ‖ fps.

What pads a prompt, and what stands for a dropped one, are the rows of a fixed random table: features as the text
encoder's, which go through the same projection and norm. The label's null is a row of its table. Motion and fps are
never null: where unknown, they are 5 pixels per frame and 12 frames per second. So guidance keeps the motion.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, UserError
from arvid.nn.conditioner import negative_condition
from arvid.nn.positions import ScalarEmbedding

TABLE_ROWS = 512
DEFAULT_MOTION = 5.0
DEFAULT_FPS = 12.0


class PublishedContext(nn.Module):
    """Condition -> context tokens (B, S, D).

    Args:
        spec: which conditions there are. With motion there is always a token for fps, and the other way round.
        dim: D.
    """

    table: Tensor
    _device: Tensor

    def __init__(self, spec: ContextSpec, dim: int) -> None:
        super().__init__()
        if spec.text_len > TABLE_ROWS:
            raise UserError(
                f"NOVA's null table has {TABLE_ROWS} rows, fewer than the {spec.text_len} tokens of a prompt."
            )
        if spec.text_vocab is not None:
            raise UserError(
                "NOVA's null table holds features of a text encoder, and this one gives ids of words: "
                "take nulls: learned, or an encoder with features."
            )
        self.spec = spec
        self.dim = dim
        self.register_buffer("_device", torch.empty(0), persistent=False)
        if spec.text_dim is not None:
            self.register_buffer("table", 0.02 * torch.randn(TABLE_ROWS, spec.text_dim))
            self.text = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.LayerNorm(dim))
        if spec.num_classes is not None:
            self.label = nn.Embedding(spec.num_classes + 1, dim)
            nn.init.normal_(self.label.weight, std=0.02)
            self.label_norm = nn.LayerNorm(dim)
        if spec.motion or spec.fps:
            self.motion = ScalarEmbedding(dim)
            self.fps = ScalarEmbedding(dim)

    def forward(
        self, condition: Condition, batch_size: int, drop: Tensor | None = None
    ) -> Float[Tensor, "b s d"]:
        """`drop` (B,) is True where text and label are replaced by null ones."""
        parts = []
        if self.spec.text_dim is not None:
            parts.append(self.text(self._features(condition, batch_size, drop)))
        if self.spec.num_classes is not None:
            parts.append(self._label(condition, batch_size, drop)[:, None])
        if self.spec.motion or self.spec.fps:
            for embed, value, default in (
                (self.motion, condition.motion, DEFAULT_MOTION),
                (self.fps, condition.fps, DEFAULT_FPS),
            ):
                parts.append(embed(self._known(value, default, batch_size))[:, None])
        if not parts:
            return self._device.new_empty(batch_size, 0, self.dim)
        return torch.cat(parts, dim=1)

    def negative(self, condition: Condition, batch_size: int) -> Float[Tensor, "b s d"]:
        """What guidance leads away from: the negative text or the null one, with the same motion."""
        away = negative_condition(condition)
        away.motion, away.fps = condition.motion, condition.fps
        context: Tensor = self(away, batch_size)
        return context

    def _features(self, condition: Condition, batch_size: int, drop: Tensor | None) -> Tensor:
        """Text features (B, S, text_dim), the table's where there is no text."""
        table = self.table[: self.spec.text_len].expand(batch_size, -1, -1)
        if condition.text is None or condition.text_mask is None:
            return table
        known = condition.text_mask
        if drop is not None:
            known = known & ~drop[:, None]
        return torch.where(known[..., None], condition.text.to(table.dtype), table)

    def _label(self, condition: Condition, batch_size: int, drop: Tensor | None) -> Tensor:
        null = self.label.num_embeddings - 1
        label = condition.label
        if label is None:
            label = torch.full((batch_size,), null, device=self._device.device)
        unknown = label < 0 if drop is None else (label < 0) | drop
        out: Tensor = self.label_norm(self.label(label.masked_fill(unknown, null)))
        return out

    def _known(self, value: Tensor | None, default: float, batch_size: int) -> Tensor:
        if value is None:
            return torch.full((batch_size,), default, device=self._device.device)
        return torch.where(torch.isfinite(value), value, default)
