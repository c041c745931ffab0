"""Videos to tokens and back, with the tokenizer of a model, a file or an embedded one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arvid.api.clips import Clips
from arvid.api.model import Model
from arvid.contracts import UserError, VideoTokenizer
from arvid.data.clips import Frames, resize_frames
from arvid.data.collate import normalise, to_uint8
from arvid.data.video import read_video
from arvid.processes import best_device
from arvid.training.export import load_tokenizer

Videos = str | Path | Clips | NDArray[np.uint8] | Sequence[str | Path | NDArray[np.uint8]]


@torch.no_grad()
def tokenize(
    videos: Videos,
    tokenizer: str | Path | Model,
    *,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
) -> NDArray[Any]:
    """The tokens of videos: int64 (B, T', H', W') if discrete, float32 (B, T', H', W', C) if continuous.

    Args:
        videos: path, list of paths or arrays uint8 (T, H, W, 3), or array uint8 (B, T, H, W, 3); all of one shape.
        tokenizer: embedded name ("sprites-vae3d"), file, training checkpoint, NAME:SOURCE, or a model.
        frames: use only this many first frames; by default all.
        size: height and width to resize to, or one number for both; by default the videos' own.

    Raises UserError for shapes that the tokenizer does not take, and for files that cannot be read.
    """
    encoder = _tokenizer(tokenizer)
    clips = [_frames(video, frames, size) for video in _listed(videos)]
    if len({clip.shape for clip in clips}) > 1:
        raise UserError("The videos differ in shape: give `frames` and `size`.")
    encoder.check_grid(encoder.spec.grid(*clips[0].shape[:3]))
    batch = torch.stack([normalise(clip) for clip in clips]).to(_device(encoder))
    return np.asarray(encoder.encode(batch).cpu().numpy())


@torch.no_grad()
def detokenize(tokens: NDArray[Any], tokenizer: str | Path | Model) -> Clips:
    """The clips of tokens as `tokenize` returns them. Raises UserError for tokens of another shape or type."""
    decoder = _tokenizer(tokenizer)
    spec = decoder.spec
    axes, kind = ("4", "i") if spec.type == "discrete" else ("5", "f")
    if str(tokens.ndim) != axes or tokens.dtype.kind != kind:
        raise UserError(
            f"This tokenizer's tokens are {spec.type}: {axes} axes, not {tokens.dtype} {tokens.shape}."
        )
    batch = torch.from_numpy(np.ascontiguousarray(tokens)).to(_device(decoder))
    return Clips(to_uint8(decoder.decode(batch)).cpu().numpy())


def _tokenizer(source: str | Path | Model) -> VideoTokenizer:
    if isinstance(source, Model):
        return source.module.tokenizer
    return load_tokenizer(source).to(best_device())


def _device(tokenizer: VideoTokenizer) -> torch.device:
    tensors = [*tokenizer.parameters(), *tokenizer.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _listed(videos: Videos) -> list[str | Path | Frames]:
    if isinstance(videos, (str, Path)):
        return [videos]
    if isinstance(videos, np.ndarray) and videos.ndim == 4:
        return [videos]
    found: list[str | Path | Frames] = list(videos)
    if not found:
        raise UserError("There are no videos to tokenize.")
    return found


def _frames(
    video: str | Path | Frames, num: int | None, size: int | tuple[int, int] | None
) -> Frames:
    """Frames uint8 (T, H, W, 3) of a file or array."""
    if isinstance(video, (str, Path)):
        video = read_video(video, max_frames=num).frames
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise UserError(f"A video is uint8 (T, H, W, 3), not {video.dtype} {video.shape}.")
    cut = video[:num]
    return cut if size is None else resize_frames(cut, size)
