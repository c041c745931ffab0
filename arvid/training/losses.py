"""Reconstruction losses of a tokenizer: pixel errors and LPIPS. The same for every tokenizer.

The adversarial loss is in arvid/training/adversarial.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import UserError
from arvid.metrics.paired import require_size
from arvid.metrics.perceptual import MIN_SIZE, Lpips
from arvid.nn.draws import draw
from arvid.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Weights of the pixel errors: means over all pixels and colours, with pixels in [-1, 1].

    The absolute error gives sharp edges. An additional squared error makes short trainings learn small bright objects,
    which the absolute error ignores at first.
    """

    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 0.0
    """Weight of the mean squared error."""

    def __post_init__(self) -> None:
        at_least(0).require("reconstruction.", l1=self.l1, l2=self.l2)
        if self.l1 + self.l2 == 0:
            raise UserError("One of reconstruction.l1 and reconstruction.l2 must be above 0.")

    def loss(
        self, reconstruction: Float[Tensor, "b 3 T H W"], video: Float[Tensor, "b 3 T H W"]
    ) -> Float[Tensor, ""]:
        """Weighted sum of the errors."""
        error = reconstruction.float() - video.float()
        parts = [(self.l1, Tensor.abs), (self.l2, Tensor.square)]
        terms = [weight * measure(error).mean() for weight, measure in parts if weight]
        return sum(terms[1:], start=terms[0])


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """LPIPS as a training loss. Its network's weights must be on the machine (see `arvid doctor`)."""

    weight: float = 0.1
    """Weight of LPIPS in the loss."""
    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network of the features."""
    frames: Literal["all", "one"] = "all"
    """all: every frame of a clip. one: a random frame of each clip, which is cheaper and noisier."""
    backbone: str | None = None
    """File with the network's ImageNet weights. null: torchvision's cache."""

    def __post_init__(self) -> None:
        at_least(0).require("perceptual.", weight=self.weight)


class PerceptualLoss:
    """LPIPS between clips in [-1, 1].

    It is not an nn.Module, so the frozen network is not saved in checkpoints, averaged or synchronised. Raises
    UserError if weights are missing, and for frames below 32x32 pixels.
    """

    def __init__(self, options: Perceptual) -> None:
        self.options = options
        self.network = Lpips(options.net, backbone=options.backbone).network

    def __deepcopy__(self, memo: object) -> PerceptualLoss:
        return self  # frozen, so a copy of the trained module can share it

    def __call__(
        self, reconstruction: Float[Tensor, "b 3 T H W"], video: Float[Tensor, "b 3 T H W"]
    ) -> Float[Tensor, ""]:
        """Mean LPIPS over the frames that `options.frames` selects."""
        if self.options.frames == "one":
            pick = partial(torch.randint, video.shape[2], device=video.device)
            index = draw(pick, [len(video), 1])
            reconstruction, video = (take_frames(x, index) for x in (reconstruction, video))
        return self.of_all_frames(reconstruction, video)

    def of_all_frames(
        self, reconstruction: Float[Tensor, "b 3 T H W"], video: Float[Tensor, "b 3 T H W"]
    ) -> Float[Tensor, ""]:
        """Mean LPIPS over all frames."""
        require_size("LPIPS", video, MIN_SIZE)
        network = self.network.to(video.device)
        pair = (rearrange(x, "b c t h w -> (b t) c h w") for x in (reconstruction, video))
        distance: Tensor = network(*pair)
        return distance.float().mean()


def take_frames(video: Float[Tensor, "b c T H W"], index: Tensor) -> Float[Tensor, "b c n H W"]:
    """The frames with the given indices (B, n) of each clip."""
    clips = torch.arange(len(video), device=video.device)[:, None]
    # Index tensors around a slice put their axes first: (B, n, C, H, W).
    return video[clips, :, index].transpose(1, 2)
