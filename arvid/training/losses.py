"""What a reconstruction is compared with its video by: pixels and LPIPS. The same for every tokenizer.

The third comparison, by a discriminator that learns, is in arvid/training/adversarial.py.
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
    """Weights of the pixels' errors, which are means over all pixels and colours in units of [-1, 1].

    The absolute error gives crisp edges; the squared one beside it makes a short training learn small bright things
    that the absolute error would first ignore.
    """

    l1: float = 1.0
    """Of the mean absolute error."""
    l2: float = 0.0
    """Of the mean squared error."""

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
    """LPIPS as a training loss; its weights must be on the machine (see `arvid doctor`)."""

    weight: float = 0.1
    """Beside the pixels' loss."""
    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Which network's features are compared."""
    frames: Literal["all", "one"] = "all"
    """Every frame of a clip, or a random one of each: cheaper, and noisier."""
    backbone: str | None = None
    """File with the network's ImageNet weights, if they lie elsewhere than where torchvision puts them."""

    def __post_init__(self) -> None:
        at_least(0).require("perceptual.", weight=self.weight)


class PerceptualLoss:
    """LPIPS between clips in [-1, 1].

    It is no module, so that its frozen network is neither saved in checkpoints nor averaged nor synchronised. Raises
    UserError where weights are missing, and for frames below 32x32 pixels.
    """

    def __init__(self, options: Perceptual) -> None:
        self.options = options
        self.network = Lpips(options.net, backbone=options.backbone).network

    def __deepcopy__(self, memo: object) -> PerceptualLoss:
        return self  # frozen: a copy of the module that trains can share it

    def __call__(
        self, reconstruction: Float[Tensor, "b 3 T H W"], video: Float[Tensor, "b 3 T H W"]
    ) -> Float[Tensor, ""]:
        """Mean over the frames that the options ask for."""
        if self.options.frames == "one":
            pick = partial(torch.randint, video.shape[2], device=video.device)
            index = draw(pick, [len(video), 1])
            reconstruction, video = (take_frames(x, index) for x in (reconstruction, video))
        return self.of_all_frames(reconstruction, video)

    def of_all_frames(
        self, reconstruction: Float[Tensor, "b 3 T H W"], video: Float[Tensor, "b 3 T H W"]
    ) -> Float[Tensor, ""]:
        """Mean over all frames."""
        require_size("LPIPS", video, MIN_SIZE)
        network = self.network.to(video.device)
        pair = (rearrange(x, "b c t h w -> (b t) c h w") for x in (reconstruction, video))
        distance: Tensor = network(*pair)
        return distance.float().mean()


def take_frames(video: Float[Tensor, "b c T H W"], index: Tensor) -> Float[Tensor, "b c n H W"]:
    """The frames whose indices (B, n) are given for each clip."""
    clips = torch.arange(len(video), device=video.device)[:, None]
    return video[clips, :, index].transpose(1, 2)
