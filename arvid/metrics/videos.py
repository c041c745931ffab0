"""Input of every metric: uint8 RGB video (B, T, H, W, 3). Checks, and conversion to frames."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, uint8


def check_videos(videos: Tensor, what: str = "videos") -> None:
    """Raise ValueError unless `videos` is uint8 (B, T, H, W, 3) and not empty."""
    if videos.dtype != uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or not videos.numel():
        raise ValueError(
            f"A metric takes {what} as uint8 (B, T, H, W, 3), not {videos.dtype} {tuple(videos.shape)}."
        )


def check_pairs(generated: Tensor, reference: Tensor) -> None:
    """Raise ValueError unless both are videos of the same shape."""
    check_videos(generated, "generated videos")
    check_videos(reference, "reference videos")
    if generated.shape != reference.shape:
        raise ValueError(
            "A paired metric compares clips of the same shape, "
            f"not {tuple(generated.shape)} with {tuple(reference.shape)}."
        )


def check_num_clips(count: int, ddof: int) -> None:
    """Raise ValueError unless `count` clips are enough for a covariance."""
    if count <= ddof:
        raise ValueError(
            f"A Fréchet distance with ddof={ddof} needs at least {ddof + 1} clips in each set, got {count}."
        )


def unit_frames(videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """All frames in [0, 1], in order of clips: (B * T, 3, H, W)."""
    return rearrange(videos, "b t h w c -> (b t) c h w").float() / 255
