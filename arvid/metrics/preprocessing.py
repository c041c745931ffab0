"""Preprocessing of uint8 clips for I3D: one named, frozen variant per published implementation of FVD.

The variants differ in details: the sampling grid of the bilinear resize, whether the aspect ratio is kept, a first
resize to 64 pixels, the epsilon of BatchNorm. Each reproduces the repository in `source`. FVD values of different
variants cannot be compared.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.metrics.videos import check_videos

SIZE = 224
"""Height and width of the network's input, pixels."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Map from levels (0..255) to the network's input: [-1, 1] at 224x224 pixels."""

    name: str
    source: str
    """The implementation that this variant reproduces."""
    weights: Literal["i3d-torchscript", "i3d-pretrained-400"]
    """Name of the I3D file in `arvid.weights.KNOWN`."""
    bn_eps: float = 1e-3
    """Epsilon of BatchNorm: 1e-3 in TensorFlow's graph and the TorchScript file, 1e-5 in VideoGPT and derived code."""
    ddof: int = 1
    """Subtracted from the clip count in the implementation's covariance."""
    fit: Literal["squash", "crop", "inside"] = "squash"
    """squash: resize both sides to 224. crop: resize the shorter side to 224, then centre crop. inside: pass levels to
    the TorchScript file, which resizes and rescales itself."""
    grid: Literal["half-pixel", "tf1"] = "half-pixel"
    """Sampling positions of the bilinear resize: half-pixel (torch), or TensorFlow 1's source = target * in / out."""
    antialias: bool = False
    """Whether downscaling is antialiased."""
    via: int | None = None
    """Side in pixels of a first, square resize; None: no first resize."""
    rounding: Literal["nearest", "truncate"] = "nearest"
    """truncate: map levels to [-0.5, 0.5] and back, then drop the fraction. This lowers 63 of the 256 levels by one.
    nearest: keep the levels."""

    def __post_init__(self) -> None:
        if self.grid == "tf1" and self.antialias:
            raise UserError("The tf1 grid has no antialiasing: use the half-pixel grid with it.")

    def __call__(self, videos: UInt8[Tensor, "b t h w 3"]) -> Tensor:
        """The network's input: float (B, 3, T, 224, 224) in [-1, 1], or uint8 (B, 3, T, H, W) for `inside`.

        Raises ValueError for anything but uint8 video (B, T, H, W, 3).
        """
        check_videos(videos)
        if self.fit == "inside":
            return rearrange(videos, "b t h w c -> b c t h w").contiguous()
        levels = rearrange(videos, "b t h w c -> (b t) c h w").float()
        if self.rounding == "truncate":
            # looks like the identity, but float32 rounding leaves 63 levels just below an integer
            levels = (((levels / 255 - 0.5) + 0.5) * 255).trunc()
        frames = self._fit(levels) / 127.5 - 1
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(videos)).contiguous()

    def _fit(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
        if self.via is not None:
            frames = self._resize(frames, (self.via, self.via))
        if self.fit == "squash":
            return self._resize(frames, (SIZE, SIZE))
        frames = self._resize(frames, covering_size(*frames.shape[-2:]))
        top, left = (frames.shape[-2] - SIZE) // 2, (frames.shape[-1] - SIZE) // 2
        return frames[..., top : top + SIZE, left : left + SIZE]

    def _resize(self, frames: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Tensor:
        if self.grid == "tf1":
            return _resize_tf1(_resize_tf1(frames, -1, size[1]), -2, size[0])
        return resize_half_pixel(frames, size, antialias=self.antialias)


def resize_half_pixel(
    frames: Float[Tensor, "n c h w"], size: tuple[int, int] = (SIZE, SIZE), antialias: bool = False
) -> Float[Tensor, "n c height width"]:
    """Bilinear resize on the half-pixel grid (align_corners=False). Frames of this size do not change."""
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)


def covering_size(height: int, width: int) -> tuple[int, int]:
    """Size with the shorter side at 224 and the longer side rounded up, as in VideoGPT and derived code.

    Their ceiling also rounds up floating-point errors: a square of 100 pixels becomes 225 x 224, cropped to the first
    224 rows.
    """
    scale = SIZE / min(height, width)
    if height < width:
        return SIZE, math.ceil(width * scale)
    return math.ceil(height * scale), SIZE


def _resize_tf1(frames: Float[Tensor, "n c h w"], axis: int, size: int) -> Tensor:
    """Linear interpolation along one axis with source = target * in / out, clamped to the last pixel."""
    length = frames.shape[axis]
    source = torch.arange(size, device=frames.device, dtype=torch.float32) * (length / size)
    low = source.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    fraction = (source - low).view(-1, 1) if axis == -2 else source - low
    below, above = frames.index_select(axis, low), frames.index_select(axis, high)
    return below + (above - below) * fraction


def get_preprocessing(name: str) -> Preprocessing:
    """A variant by name. Raises UserError with a suggestion for an unknown one."""
    if name in PREPROCESSINGS:
        return PREPROCESSINGS[name]
    close = difflib.get_close_matches(name, PREPROCESSINGS, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    known = ", ".join(sorted(PREPROCESSINGS))
    raise UserError(f"There is no preprocessing {name!r}.{suggestion} Known: {known}.")


PREPROCESSINGS = {
    variant.name: variant
    for variant in (
        Preprocessing(
            name="tf-reference",
            source="google-research frechet_video_distance (TensorFlow 1)",
            weights="i3d-pretrained-400",
            grid="tf1",
        ),
        Preprocessing(
            name="teco",
            source="wilson1yan/teco, teco/fvd.py (TensorFlow 2)",
            weights="i3d-pretrained-400",
        ),
        Preprocessing(
            name="magvit",
            source="google-research/magvit, its metrics in JAX",
            weights="i3d-pretrained-400",
            grid="tf1",
        ),
        Preprocessing(
            name="magvit-64",
            source="google-research/magvit, videogvt/tools/compute_fvd.py",
            weights="i3d-pretrained-400",
            grid="tf1",
            via=64,
        ),
        Preprocessing(
            name="stylegan-v",
            source="universome/stylegan-v",
            weights="i3d-torchscript",
            ddof=0,
            fit="inside",
        ),
        Preprocessing(
            name="nbp",
            source="NBP's transformer_eval.py, by common_metrics_on_video_quality 'styleganv'",
            weights="i3d-torchscript",
            fit="crop",
        ),
        Preprocessing(
            name="nbp-64",
            source="NBP's transformer_eval.py for frame prediction (Kinetics-600)",
            weights="i3d-torchscript",
            fit="crop",
            via=64,
        ),
        Preprocessing(
            name="videogpt",
            source="common_metrics_on_video_quality 'videogpt', after wilson1yan/VideoGPT",
            weights="i3d-pretrained-400",
            bn_eps=1e-5,
            fit="crop",
        ),
        Preprocessing(
            name="tats",
            source="songweige/TATS, tats/fvd",
            weights="i3d-pretrained-400",
            bn_eps=1e-5,
        ),
        Preprocessing(
            name="omnitokenizer",
            source="TATS's in the tokenizer evaluation of OmniTokenizer and NBP",
            weights="i3d-pretrained-400",
            bn_eps=1e-5,
            rounding="truncate",
        ),
        Preprocessing(
            name="cd-fvd",
            source="songweige/content-debiased-fvd, model 'i3d'",
            weights="i3d-pretrained-400",
            bn_eps=1e-5,
            ddof=0,
        ),
        Preprocessing(
            name="antialiased",
            source="arvid's own: frames that shrink are averaged, the aspect ratio is kept",
            weights="i3d-pretrained-400",
            fit="crop",
            antialias=True,
        ),
    )
}
