"""Mean loss of each latent frame, for training curves."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def losses_by_frame(
    losses: Float[Tensor, "b *n"],
    frames: Int[Tensor, "b *n"],
    num_frames: int,
    weight: Tensor | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Mean loss of the tokens of each latent frame: `frame_0`, `frame_1`, ... without gradients.

    Args:
        losses: loss of each predicted token.
        frames: latent frame of each predicted token.
        num_frames: latent frames of the clips. With one frame the result is empty.
        weight: weight of each token in the means (a bool mask works); by default 1.

    A frame without tokens in the batch gets the mean of all tokens, so that curves have no gaps.
    """
    if num_frames == 1:
        return {}
    losses, frames = losses.detach().float().flatten(), frames.flatten()
    weights = torch.ones_like(losses) if weight is None else weight.float().flatten()
    sums, counts = (
        losses.new_zeros(num_frames).index_add(0, frames, values)
        for values in (losses * weights, weights)
    )
    means = torch.where(counts > 0, sums / counts.clamp_min(1e-9), losses.mean())
    return {f"frame_{i}": without_view(mean) for i, mean in enumerate(means)}


def without_view(value: Tensor) -> Tensor:
    """A copy in compiled code, else `value` itself. With symbolic lengths, inductor fails if a result is a view."""
    return value.clone() if torch.compiler.is_compiling() else value
