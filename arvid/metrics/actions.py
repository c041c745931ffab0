"""Action accuracy: does the shape of a generated keyboard-sprites clip move as the actions say?

It needs no network. The shape is the set of pixels that differ from the background. The displacement of its centroid
from frame to frame is compared with the displacement of each key. Real clips reach 100 %. A clip that stands still
reaches the share of "stay" among the actions, a little above chance (20 %).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from arvid.data.keyboard_sprites import MOVES, STEP
from arvid.metrics.videos import check_videos

CONTRAST = 40.0
"""Minimum difference in levels between a pixel of the shape and the background, in the channel that differs most."""
MIN_SHARE = 0.01
"""Minimum share of the frame's pixels that counts as a shape."""


def centroids(videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t 2"]:
    """Centroid (x, y) of the shape in each frame, as fractions of the frame; NaN for a frame without a shape.

    The background is the median colour. A pixel's weight is its difference from the background beyond CONTRAST, so the
    antialiased edge gives the centroid a precision below one pixel.
    """
    frames = videos.float()
    height, width = frames.shape[2:4]
    median = frames.flatten(2, 3).median(dim=2).values[:, :, None, None]  # (B, T, 1, 1, 3)
    weight = ((frames - median).abs().amax(-1) - CONTRAST).clamp_min(0)  # (B, T, H, W)
    is_shown = (weight > 0).float().mean((2, 3)) >= MIN_SHARE
    x = (torch.arange(width, device=frames.device) + 0.5) / width
    y = (torch.arange(height, device=frames.device) + 0.5) / height
    total = weight.sum((2, 3))
    centre = torch.stack([(weight.sum(2) * x).sum(2), (weight.sum(3) * y).sum(2)], dim=-1)
    found = centre / total[..., None]
    return torch.where(is_shown[..., None], found, torch.nan)


def actions_shown(videos: UInt8[Tensor, "b t h w 3"]) -> Int[Tensor, "b t1"]:
    """Id of the action with the displacement nearest to the shape's, for each pair of successive frames; -1: no shape.

    Raises ValueError for videos of another shape or type.
    """
    check_videos(videos)
    steps = centroids(videos).diff(dim=1) / STEP  # (B, T-1, 2)
    moves = torch.from_numpy(MOVES).to(steps)
    nearest = (steps[:, :, None] - moves).norm(dim=-1).argmin(-1)
    return torch.where(steps.isfinite().all(-1), nearest, -1)


def obeyed(videos: UInt8[Tensor, "b t h w 3"], actions: Int[Tensor, "b t"]) -> Bool[Tensor, "b t1"]:
    """Whether each frame after the first shows its action: `actions[:, i]` leads to frame i."""
    return actions_shown(videos) == actions[:, 1:].to(videos.device)
