"""PatchGAN (arXiv 1611.07004) on clips or frames: a map of logits, one for each patch of the video.

Rows and columns are as in the paper: kernel 4, padding 1, stride 2 except in the last two layers. Time has kernel 3,
which keeps clips of 1 + 4n frames centred and also takes a single frame. Difference from the paper: group norm instead
of batch norm. A batch on one device is often a single clip, and with statistics over clips, a discriminator could
recognise batches of real or reconstructed clips. The last convolution has no norm or activation.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.ranges import at_least

NUM_GROUPS = 32
WIDEST = 8
"""Channels double with each layer, up to this multiple of the first layer's."""


class PatchDiscriminator(nn.Module):
    """Video (B, 3, T, H, W) to logits (B, 1, T', h, w); positive logits mean real.

    Args:
        channels: channels of the first layer; a multiple of 16.
        num_layers: layers that halve the resolution. The published three give patches of 70x70 pixels.
        across_time: patches span frames (3-D); otherwise each frame is judged separately (2-D).
    """

    def __init__(
        self, *, channels: int = 64, num_layers: int = 3, across_time: bool = True
    ) -> None:
        super().__init__()
        at_least(1).require("adversarial.", channels=channels, num_layers=num_layers)
        if channels % (NUM_GROUPS // 2):
            raise UserError(f"adversarial.channels must be a multiple of 16, not {channels}.")
        self.min_size = 3 * 2**num_layers
        widths = [min(2**i, WIDEST) * channels for i in range(num_layers + 1)]
        time = 3 if across_time else 1

        def conv(before: int, after: int, stride: int, bias: bool = True) -> nn.Conv3d:
            strides = (stride if across_time else 1, stride, stride)
            padding = (time // 2, 1, 1)
            return nn.Conv3d(before, after, (time, 4, 4), strides, padding, bias=bias)

        layers: list[nn.Module] = [conv(3, widths[0], 2), nn.LeakyReLU(0.2)]
        for i in range(num_layers):
            layers += [
                conv(widths[i], widths[i + 1], 2 if i < num_layers - 1 else 1, bias=False),
                nn.GroupNorm(NUM_GROUPS, widths[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(conv(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 1 t h w"]:
        """Raises UserError for frames that are too small for one logit."""
        if min(video.shape[-2:]) < self.min_size:
            raise UserError(
                f"This discriminator needs frames of at least {self.min_size}x{self.min_size} pixels, "
                f"got {video.shape[-2]}x{video.shape[-1]}: give it fewer layers."
            )
        logits: Tensor = self.layers(video)
        return logits


def _initialise(network: nn.Module) -> None:
    """Kernels: normal with standard deviation 0.02 as in the paper; biases: 0; norms: 1."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
