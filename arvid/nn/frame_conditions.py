"""Conditions per frame: from a value for each frame to a vector for each latent frame.

A latent frame stands for F frames (the tokenizer's temporal stride), so it is conditioned on the values of F frames.
Those of the first latent frame of a causal tokenizer are one frame's: the other F - 1 are unknown.

B batch, t latent frames, F frames of a latent frame, K numbers of a vector, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from arvid.contracts import Condition, ContextSpec, TokenSpec, UserError
from arvid.nn.conditions import condition


def group_frames(value: Tensor, tokens: TokenSpec, unknown: int | float) -> Tensor:
    """Values of frames (B, T, ...) in groups of latent frames (B, t, F, ...).

    Frame i of a causal tokenizer lies in latent frame ceil(i / F), as the last of its group for i = 0.
    """
    num = tokens.strides[0]
    front = num - 1 if tokens.causal else 0
    back = -(value.shape[1] + front) % num
    sides = [0, 0] * (value.ndim - 2) + [front, back]  # from the last axis on
    padded = nn.functional.pad(value, sides, value=unknown)
    return padded.unflatten(1, (-1, num))


class FrameIds(nn.Module):
    """Class ids of frames: a table of `size` vectors for each place in the group, whose vectors are added up."""

    def __init__(self, size: int, num_frames: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Embedding(num_frames * size, dim)
        nn.init.normal_(self.table.weight, std=num_frames**-0.5)

    def forward(
        self, ids: Int[Tensor, "b t f"], known: Bool[Tensor, "b t f"]
    ) -> Float[Tensor, "b t d"]:
        first_rows = self.size * torch.arange(ids.shape[2], device=ids.device)
        return (self.table(ids + first_rows) * known[..., None]).sum(2)


class FrameNumbers(nn.Module):
    """Numbers or vectors of frames: a linear map of those of the group, where unknown ones count as 0."""

    def __init__(self, size: int, num_frames: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_frames * size, dim)

    def forward(self, numbers: Tensor, known: Bool[Tensor, "b t f"]) -> Float[Tensor, "b t d"]:
        out: Tensor = self.project(numbers.flatten(2).to(self.project.weight.dtype))
        return out


class FrameEmbedder(nn.Module):
    """Conditions per frame -> a vector for each latent frame (B, t, D), the sum over the conditions.

    A paradigm adds it where it predicts that latent frame. A latent frame none of whose values are known, and all of a
    clip whose condition is dropped, get a learned null vector.

    Args:
        spec: its `frame_conditions`; without any the embedder has no parameters and gives None.
        dim: D.
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
        """The vectors of `num_frames` latent frames; `drop` (B,) is True where they are all the null one.

        Raises UserError for values of another number of latent frames.
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
        """The vectors for each pass of guidance, one after another: given in the first, null in the others."""
        vectors: Tensor | None = self(given, batch_size, num_frames)
        if vectors is None or passes == 1:
            return vectors
        null = self(Condition(), batch_size, num_frames)
        return torch.cat([vectors, *[null] * (passes - 1)])

    def _embed(self, name: str, value: Tensor, null: Tensor, drop: Tensor | None) -> Tensor:
        known = condition(name).known(value)  # (B, t, F)
        seen = known[(...,) + (None,) * (value.ndim - known.ndim)]
        vectors = self.get_submodule(name)(torch.where(seen, value, torch.zeros_like(value)), known)
        shown = known.any(2)
        if drop is not None:
            shown = shown & ~drop[:, None]
        return torch.where(shown[..., None], vectors, null)


def _require_frames(name: str, value: Tensor, num_frames: int) -> None:
    if value.shape[1] != num_frames:
        raise UserError(
            f"The condition {name} is of clips of {value.shape[1]} latent frames, and these have {num_frames}."
        )
