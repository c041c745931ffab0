"""Context tokens as in NOVA's released code (arXiv 2412.14169): text ‖ label ‖ motion ‖ fps ‖ others.

The rows of a fixed random table pad prompts and replace dropped prompts. They have the form of text features, and pass
through the same projection and norm. The label's null is a row of the label table. Motion and fps have no null: if
unknown, they are 5 pixels per frame and 12 fps. So guidance keeps the motion. Other conditions, which the released code
does not have, have learned null tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, UserError
from arvid.nn.conditioner import ContextEmbedder, negative_condition
from arvid.nn.positions import ScalarEmbedding

TABLE_ROWS = 512
DEFAULT_MOTION = 5.0
DEFAULT_FPS = 12.0
OWN = ("label", "motion", "fps")
"""The conditions of the released code."""


class PublishedContext(nn.Module):
    """Condition -> context tokens (B, S, D).

    Args:
        spec: the conditions. If there is motion or fps, both have a token.
        dim: width D.
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
                "NOVA's null table needs text features, but this text encoder gives word ids: use nulls: learned, or "
                "another text encoder."
            )
        self.spec = spec
        self.dim = dim
        self.register_buffer("_device", torch.empty(0), persistent=False)
        if spec.text_dim is not None:
            self.register_buffer("table", 0.02 * torch.randn(TABLE_ROWS, spec.text_dim))
            self.text = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.LayerNorm(dim))
        if "label" in spec.conditions:
            self.label = nn.Embedding(spec.conditions["label"] + 1, dim)
            nn.init.normal_(self.label.weight, std=0.02)
            self.label_norm = nn.LayerNorm(dim)
        self.has_motion = "motion" in spec.conditions or "fps" in spec.conditions
        if self.has_motion:
            self.motion = ScalarEmbedding(dim)
            self.fps = ScalarEmbedding(dim)
        others = {name: size for name, size in spec.conditions.items() if name not in OWN}
        self.others = ContextEmbedder(ContextSpec(conditions=others), dim) if others else None

    def forward(
        self, condition: Condition, batch_size: int, drop: Tensor | None = None
    ) -> Float[Tensor, "b s d"]:
        """`drop` (B,) is True for clips whose text and label are replaced by null."""
        parts = []
        if self.spec.text_dim is not None:
            parts.append(self.text(self._features(condition, batch_size, drop)))
        if "label" in self.spec.conditions:
            parts.append(self._label(condition, batch_size, drop)[:, None])
        if self.has_motion:
            for embed, name, default in (
                (self.motion, "motion", DEFAULT_MOTION),
                (self.fps, "fps", DEFAULT_FPS),
            ):
                value = self._known(condition.values.get(name), default, batch_size)
                parts.append(embed(value)[:, None])
        if self.others is not None:
            parts.append(self.others(condition, batch_size, drop))
        if not parts:
            return self._device.new_empty(batch_size, 0, self.dim)
        return torch.cat(parts, dim=1)

    def negative(self, condition: Condition, batch_size: int) -> Float[Tensor, "b s d"]:
        """Negative context for guidance: of the negative prompt or null, with the same motion score and frame rate."""
        negative = negative_condition(condition)
        kept = {name: v for name, v in condition.values.items() if name in ("motion", "fps")}
        negative.values.update(kept)
        context: Tensor = self(negative, batch_size)
        return context

    def _features(self, condition: Condition, batch_size: int, drop: Tensor | None) -> Tensor:
        """Text features (B, S, text_dim), with rows of the table where there is no text."""
        table = self.table[: self.spec.text_len].expand(batch_size, -1, -1)
        if condition.text is None or condition.text_mask is None:
            return table
        known = condition.text_mask
        if drop is not None:
            known = known & ~drop[:, None]
        return torch.where(known[..., None], condition.text.to(table.dtype), table)

    def _label(self, condition: Condition, batch_size: int, drop: Tensor | None) -> Tensor:
        null = self.label.num_embeddings - 1
        label = condition.values.get("label")
        if label is None:
            label = torch.full((batch_size,), null, device=self._device.device)
        unknown = label < 0 if drop is None else (label < 0) | drop
        out: Tensor = self.label_norm(self.label(label.masked_fill(unknown, null)))
        return out

    def _known(self, value: Tensor | None, default: float, batch_size: int) -> Tensor:
        if value is None:
            return torch.full((batch_size,), default, device=self._device.device)
        return torch.where(torch.isfinite(value), value, default)
