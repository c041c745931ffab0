"""Conditions per frame: from one value per frame to one vector per latent frame.

A latent frame has F frames (the tokenizer's temporal stride), so its condition is the values of F frames. The first
latent frame of a causal tokenizer has only one frame; its other F - 1 values are unknown.

B batch, T frames, t latent frames, F frames of a latent frame, K components of a vector, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, TokenSpec, UserError
from arvid.nn.conditions import condition


def group_frames(value: Tensor, tokens: TokenSpec, unknown: int | float) -> Tensor:
    """Group the values of frames (B, T, ...) by latent frame: (B, t, F, ...).

    With a causal tokenizer, frame i belongs to latent frame ceil(i / F); frame 0 is the last of its group.
    """
    num = tokens.strides[0]
    front = num - 1 if tokens.causal else 0
    back = -(value.shape[1] + front) % num
    sides = [0, 0] * (value.ndim - 2) + [front, back]  # F.pad lists the last axis first
    padded = nn.functional.pad(value, sides, value=unknown)
    return padded.unflatten(1, (-1, num))


class FrameIds(nn.Module):
    """Embeds class ids of frames: the sum of F vectors, from a separate table for each position in the group."""

    def __init__(self, size: int, num_frames: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Embedding(num_frames * size, dim)
        nn.init.normal_(self.table.weight, std=num_frames**-0.5)

    def forward(
        self, ids: Int[Tensor, "b t f"], known: Bool[Tensor, "b t f"]
    ) -> Float[Tensor, "b t d"]:
        # One table holds the rows of all F positions, one after another: position i starts at row i * size.
        first_rows = self.size * torch.arange(ids.shape[2], device=ids.device)
        return (self.table(ids + first_rows) * known[..., None]).sum(2)


class FrameNumbers(nn.Module):
    """Embeds numbers or vectors of frames: a linear map of a group's values. Unknown values are 0."""

    def __init__(self, size: int, num_frames: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_frames * size, dim)

    def forward(self, numbers: Tensor, known: Bool[Tensor, "b t f"]) -> Float[Tensor, "b t d"]:
        out: Tensor = self.project(numbers.flatten(2).to(self.project.weight.dtype))
        return out


class FrameEmbedder(nn.Module):
    """Conditions per frame -> one vector per latent frame (B, t, D), summed over conditions.

    A paradigm adds the vector to the hidden states that predict the latent frame. A latent frame without known values,
    and all latent frames of a clip whose condition is dropped, get a learned null vector.

    Args:
        spec: provides `frame_conditions`. If there are none, the embedder has no parameters and returns None.
        dim: width D.
    """

    def __init__(self, spec: ContextSpec, dim: int) -> None:
        super().__init__()
        self.names = tuple(spec.frame_conditions)
        for name, size in spec.frame_conditions.items():
            self.add_module(name, condition(name).embedder(size, dim, spec.frames_per_latent))
        if self.names:
            self.null = nn.Parameter(torch.randn(len(self.names), dim) * 0.02)

    def forward(
        self, given: Condition, batch_size: int, num_frames: int, drop: Tensor | None = None
    ) -> Float[Tensor, "b t d"] | None:
        """The vectors of `num_frames` latent frames. `drop` (B,) is True for clips that get only null vectors.

        Raises UserError if the values have another number of latent frames.
        """
        if not self.names:
            return None
        parts = []
        for name, null in zip(self.names, self.null, strict=True):
            value = given.values.get(name)
            if value is None:
                parts.append(null.expand(batch_size, num_frames, -1))
            else:
                _require_frames(name, value, num_frames)
                parts.append(self._embed(name, value, null, drop))
        return torch.stack(parts).sum(0)

    def guided(
        self, given: Condition, batch_size: int, num_frames: int, passes: int
    ) -> Float[Tensor, "pb t d"] | None:
        """The vectors of each guidance pass, one after another: given ones in the first pass, null in the others."""
        vectors: Tensor | None = self(given, batch_size, num_frames)
        if vectors is None or passes == 1:
            return vectors
        null = self(Condition(), batch_size, num_frames)
        return torch.cat([vectors, *[null] * (passes - 1)])

    def _embed(self, name: str, value: Tensor, null: Tensor, drop: Tensor | None) -> Tensor:
        known = condition(name).known(value)  # (B, t, F)
        # A vector condition has an axis more than its mask.
        expanded = known[(...,) + (None,) * (value.ndim - known.ndim)]  # (B, t, F[, 1])
        filled = torch.where(expanded, value, torch.zeros_like(value))
        vectors = self.get_submodule(name)(filled, known)
        kept = known.any(2)
        if drop is not None:
            kept = kept & ~drop[:, None]
        return torch.where(kept[..., None], vectors, null)


def _require_frames(name: str, value: Tensor, num_frames: int) -> None:
    if value.shape[1] != num_frames:
        raise UserError(
            f"The condition {name} has values for {value.shape[1]} latent frames, but the clips have {num_frames}."
        )
