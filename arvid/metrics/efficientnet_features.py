"""Clip features of `fd-efficientnet`: what the frames show, and how fast it changes, seen by an ImageNet network.

Each frame gets the 192 channels of EfficientNet-Lite0's sixth stage, averaged over the frame. A clip gets three vectors
of them, joined: the mean over frames, and CHANGE_SCALE times the mean absolute change between frames at lag 1 and at
lag 2. The mean sees noise, blur and content. The changes see still frames and shuffled frames: a smooth motion changes
more over two frames than over one, a shuffled one does not. The features are equal for a clip and its reverse.

The sixth stage, the lags and the scale were chosen by a benchmark (docs/results/distance-sensitivity.md). A distance
over these features is not FVD, which has a network for video.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, cat
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.metrics.efficientnet import EfficientNetLite0, load_efficientnet, weights_path
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.inference import in_chunks
from arvid.metrics.videos import check_videos

CHANGE_SCALE = 4.0
"""Factor of the changes. Without it the means, which vary more between clips, hide them."""
FRAME_SIZE = 128
"""Height and width of the network's input. It was trained with 224, which takes five times as long."""
LAGS = (1, 2)
_STAGE, _CHANNELS = 6, 192


class EfficientNetFeatures(FeatureNetwork):
    """uint8 video (B, T, H, W, 3), T >= 3 -> features float32 (B, 576)."""

    name = "efficientnet-lite0-stage6-changes"
    num_features = _CHANNELS * (1 + len(LAGS))

    def __init__(self, network: EfficientNetLite0, sha256: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.sha256 = sha256
        self.eval().requires_grad_(False)

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        """Raises UserError for fewer than 3 frames, ValueError for anything but uint8 video."""
        check_videos(videos)
        if videos.shape[1] <= max(LAGS):
            raise UserError(
                f"fd-efficientnet compares frames {max(LAGS)} apart: clips of {videos.shape[1]} frames have none."
            )
        device = next(self.network.parameters()).device
        return in_chunks(self._clip_features, videos, device)

    def _clip_features(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        maps = self.network.after_stage(prepare(videos), _STAGE)
        return summarise(rearrange(maps.mean((2, 3)), "(b t) c -> b t c", b=len(videos)))


def prepare(videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "n 3 128 128"]:
    """All frames as the network's input: (levels - 127) / 128, resized (bicubic, antialiased)."""
    frames = (rearrange(videos, "b t h w c -> (b t) c h w").float() - 127) / 128
    size = (FRAME_SIZE, FRAME_SIZE)
    return F.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False)


def summarise(frames: Float[Tensor, "b t c"]) -> Float[Tensor, "b d"]:
    """Clip features from frame features: mean, and scaled mean absolute change at each lag."""
    changes = [(frames[:, lag:] - frames[:, :-lag]).abs().mean(1) for lag in LAGS]
    return cat([frames.mean(1), *(CHANGE_SCALE * change for change in changes)], dim=1)


def efficientnet_features() -> EfficientNetFeatures:
    """The features with the published weights, on the CPU. Raises UserError as `load_efficientnet` does."""
    return EfficientNetFeatures(load_efficientnet(), sha256_file(weights_path()))
