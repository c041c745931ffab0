"""Feature network without weights, for clips that no trained feature network fits."""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.videos import check_videos

GRID = (4, 8, 8)


class PixelFeatures(FeatureNetwork):
    """Mean colours in [0, 1] of a clip's 4 x 8 x 8 cells (time, rows, columns): 768 features.

    The features hold colour by place and time, without detail finer than a cell. So a Fréchet distance over them
    compares coarse layout and motion. It is not FVD.
    """

    name = "pixels-4x8x8"
    num_features = 3 * GRID[0] * GRID[1] * GRID[2]

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        check_videos(videos)
        cells = F.adaptive_avg_pool3d(videos.permute(0, 4, 1, 2, 3).float() / 255, GRID)
        return cells.flatten(1)
