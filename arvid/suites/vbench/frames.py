"""VBench's preprocessing of frames for each network (from its `utils.py` and `imaging_quality.py`).

Frames are resized as float tensors in 0..255, without antialiasing, rounding or clamping. Only appearance_style uses
Pillow: antialiased and rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

Frames = UInt8[np.ndarray, "t h w 3"]
Pixels = Float[Tensor, "t 3 h w"]
Prepare = Callable[[Frames], Pixels]
"""Maps uint8 frames to the input of a network."""

SIZE = 224
MUSIQ_SIZE = 512
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def to_float(frames: Frames) -> Pixels:
    """float32 in 0..255, channels first."""
    return rearrange(torch.from_numpy(frames), "t h w c -> t c h w").float()


def for_dino(frames: Frames) -> Pixels:
    """Resize the shorter side to 224 (bilinear), no crop; ImageNet's normalisation."""
    resized = TF.resize(to_float(frames), [SIZE], InterpolationMode.BILINEAR, antialias=False)
    return TF.normalize(resized / 255, *_IMAGENET)


def for_clip(frames: Frames) -> Pixels:
    """Resize the shorter side to 224 (bicubic), centre crop 224x224; CLIP's normalisation."""
    resized = TF.resize(to_float(frames), [SIZE], InterpolationMode.BICUBIC, antialias=False)
    return TF.normalize(TF.center_crop(resized, [SIZE]) / 255, *_CLIP)


def for_clip_by_pillow(frames: Frames) -> Pixels:
    """Like `for_clip`, but with Pillow's bicubic resize, which antialiases and rounds."""
    pictures = [
        TF.resize(Image.fromarray(frame), [SIZE], InterpolationMode.BICUBIC) for frame in frames
    ]
    cropped = torch.stack([TF.to_tensor(TF.center_crop(picture, [SIZE])) for picture in pictures])
    return TF.normalize(cropped, *_CLIP)


def for_musiq(frames: Frames) -> Pixels:
    """Frames in [0, 1]. A longer side above 512 is resized to 512 (bilinear; VBench's mode "longer")."""
    pixels = to_float(frames)
    height, width = pixels.shape[-2:]
    longer = max(height, width)
    if longer > MUSIQ_SIZE:
        scale = MUSIQ_SIZE / longer
        size = [int(scale * height), int(scale * width)]
        pixels = TF.resize(pixels, size, InterpolationMode.BILINEAR, antialias=False)
    return pixels / 255


def for_raft(frame: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    """Frame in [-1, 1]. Both sides are padded to multiples of 8 with the border's values, half on each side."""
    pixels = to_float(frame[None])
    height, width = (-size % 8 for size in pixels.shape[-2:])  # missing to the next multiple of 8
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(2 * (pixels / 255) - 1, sides, mode="replicate")
