"""Token embeddings: of ids or latents, and of patches of a frame."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from arvid.contracts import TokenGrid, Tokens, TokenSpec, UserError


class TokenEmbedding(nn.Module):
    """Tokens (..., N) ids or (..., N, C) latents -> (..., N, D)."""

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.project: nn.Module = (
            nn.Embedding(spec.size, dim) if spec.type == "discrete" else nn.Linear(spec.size, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        if isinstance(self.project, nn.Linear):
            tokens = tokens.to(self.project.weight.dtype)
        out: Tensor = self.project(tokens)
        return out


class PatchEmbedding(nn.Module):
    """Patches of p x p tokens -> vectors.

    A linear map embeds the latents of a patch in the order (row, column, channel), as a strided convolution does. Ids
    are first embedded with D/p² numbers each.
    """

    def __init__(self, spec: TokenSpec, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.lookup: nn.Module = nn.Identity()
        channels = spec.size
        if spec.type == "discrete":
            channels = max(dim // patch**2, 1)
            self.lookup = nn.Embedding(spec.size, channels)
        self.proj = nn.Linear(patch**2 * channels, dim)

    def forward(self, frame: Tensor, known: Tensor | None = None) -> Tensor:
        """Frames (B, h, w[, C]) -> (B, h/p · w/p, D) in raster order. Tokens that are not `known` (B, h, w) are 0."""
        values = self.lookup(frame)
        if known is not None:
            values = torch.where(known[..., None], values, 0.0)
        return self._project(patchify(values, self.patch))

    def vectors(self, patches: Tensor) -> Tensor:
        """Patches in the form of `to_patches`, (B, N[, p·p·C]) -> (B, N, D)."""
        return self._project(self.lookup(patches))

    def _project(self, patches: Tensor) -> Tensor:
        out: Tensor = self.proj(patches.to(self.proj.weight.dtype))
        return out


def patchify(frame: Tensor, patch: int) -> Tensor:
    """(B, h, w, C) -> (B, h/p · w/p, p·p·C) with the channel as the fastest index."""
    return rearrange(frame, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int, height: int) -> Tensor:
    """Inverse of `patchify`: (B, h/p · w/p, p·p·C) -> (B, h, w, C) with h = `height`."""
    return rearrange(
        tokens, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=height // patch
    )


def to_patches(frames: Tensor, spec: TokenSpec, patch: int) -> Tensor:
    """Frames (B, h, w[, C]) as the sequence of predicted units: ids (B, hw), or patches (B, h/p · w/p, p·p·C)."""
    return frames.flatten(1) if spec.type == "discrete" else patchify(frames, patch)


def from_patches(patches: Tensor, spec: TokenSpec, patch: int, height: int) -> Tensor:
    """Inverse of `to_patches`, for frames with `height` rows."""
    if spec.type == "discrete":
        return patches.unflatten(1, (height, -1))
    return unpatchify(patches, patch, height)


def to_sequence(clips: Tokens, spec: TokenSpec, patch: int) -> Tensor:
    """Clips (B, t, h, w[, C]) as sequences, frame after frame: ids (B, N) or vectors (B, N, p·p·C)."""
    patches = to_patches(clips.flatten(0, 1), spec, patch)
    return patches.unflatten(0, clips.shape[:2]).flatten(1, 2)


def from_sequence(sequence: Tensor, spec: TokenSpec, patch: int, grid: TokenGrid) -> Tokens:
    """Inverse of `to_sequence`, for clips of this grid."""
    patches = sequence.unflatten(1, (grid.t, -1))
    frames = from_patches(patches.flatten(0, 1), spec, patch, grid.h)
    return frames.unflatten(0, patches.shape[:2])


def empty_tokens(spec: TokenSpec, grid: TokenGrid, batch_size: int, device: torch.device) -> Tokens:
    """Clips before any token is drawn: zeros (B, t, h, w[, C])."""
    shape = (batch_size, grid.t, grid.h, grid.w)
    if spec.type == "discrete":
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.zeros(*shape, spec.size, device=device)


def require_prefix(prefix: Tokens, spec: TokenSpec, grid: TokenGrid, batch_size: int) -> None:
    """Raise UserError unless given latent frames are (B, 1 or more, h, w[, C]), with ids that the tokenizer has."""
    channels = () if spec.type == "discrete" else (spec.size,)
    expected = (batch_size, max(prefix.shape[1], 1), grid.h, grid.w, *channels)
    if tuple(prefix.shape) != expected:
        raise UserError(f"The prefix is {tuple(prefix.shape)}, not {expected}.")
    if spec.type == "continuous":
        return
    low, high = prefix.aminmax()
    if (low < 0) | (high >= spec.size):  # one value, because the host waits for each
        raise UserError(
            f"The prefix has ids from {int(low)} to {int(high)}; this model knows 0 to {spec.size - 1}. "
            "Was it encoded by another tokenizer?"
        )
