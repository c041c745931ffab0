"""How far a tokenizer's reconstruction is from the video, as a training loss."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

ReconstructionLoss = Literal["l1", "l2", "l1+l2"]
"""Mean absolute error, mean squared error, or their sum. l1 gives crisp edges; the squared error beside it makes
a short training learn small bright things that the absolute error would first ignore."""


def reconstruction_loss(
    reconstruction: Float[Tensor, "b 3 T H W"],
    video: Float[Tensor, "b 3 T H W"],
    kind: ReconstructionLoss,
) -> Float[Tensor, ""]:
    """Mean over all pixels and colours, in units of [-1, 1]."""
    error = reconstruction.float() - video.float()
    parts = {"l1": Tensor.abs, "l2": Tensor.square}
    means = [parts[name](error).mean() for name in kind.split("+")]
    return sum(means[1:], start=means[0])
