"""Rows of diffusers' video pipelines, asked with the captions (and first frames) of the real clips."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from arvid.contracts import Clip, UserError
from arvid.data.clips import resize_frames
from arvid.evaluation.external import clip_of
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.row_kinds import Row, Videos
from arvid.processes import best_device


class PipelineRow(Row):
    """A video pipeline of diffusers: text to video for generation, image to video for predictions of one given frame.

    Each clip has a random generator of its own (the protocol's seed + its number), so that it is the same in any
    batch. The pipeline is asked for the protocol's number of frames, where it can be; what is longer or of another
    size is treated like a `VideosRow`.

    Args:
        pipeline: called with `prompt` and `image` as far as it takes them, `generator`, `output_type="np"` and
            `arguments`; gives an object whose `frames` are float (1, T, H, W, 3) in [0, 1], of which the first is
            the image where there is one.
        name: of the row.
        source: hub name or folder that it comes from.
        dtype: that it was loaded in.
        arguments: what else it is called with.
        protocol: how it will be scored.

    Raises UserError for a protocol whose task it cannot do.
    """

    def __init__(
        self,
        pipeline: Callable[..., Any],
        name: str,
        *,
        source: str,
        dtype: str,
        arguments: Mapping[str, Any],
        protocol: Protocol,
    ) -> None:
        options = {"pipeline": source, "dtype": dtype}
        super().__init__(name, {}, options | {k: str(v) for k, v in arguments.items()})
        check_task(protocol)
        self.pipeline = pipeline
        self.known = inspect.signature(type(pipeline).__call__).parameters
        self.arguments = dict(arguments)
        self._require_images(protocol)

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        first = protocol.seed + batch * protocol.batch_size
        return np.stack([self._clip(clip, first + i, protocol) for i, clip in enumerate(clips)])

    def classes(self) -> set[type]:
        return {*super().classes(), type(self.pipeline)}

    def _require_images(self, protocol: Protocol) -> None:
        """Raise UserError unless it takes an image where one is given, and does without where none is."""
        image = self.known.get("image")
        if protocol.task == "prediction" and image is None:
            raise UserError(
                f"{self.name} takes no image, so it cannot go on from the frame that protocol {protocol.name} "
                "gives: name an image-to-video pipeline."
            )
        if protocol.task == "generation" and image and image.default is image.empty:
            raise UserError(
                f"{self.name} goes on from an image, and protocol {protocol.name} gives captions alone: name a "
                "text-to-video pipeline."
            )

    def _clip(self, clip: Clip, seed: int, protocol: Protocol) -> np.ndarray:
        """uint8 (T, H, W, 3), as the protocol wants it."""
        spec = clip_of(protocol)
        made = self.pipeline(
            **{**self._asked(clip, protocol), **self.arguments},
            generator=torch.Generator("cpu").manual_seed(seed),  # the same noise on any device
            output_type="np",
        )
        frames = np.asarray(made.frames, dtype=np.float32)
        if frames.ndim != 5 or len(frames) != 1 or frames.shape[-1] != 3:
            raise UserError(f"{self.name} gave {frames.shape}, not a video (1, T, H, W, 3).")
        if not np.isfinite(frames).all():
            raise UserError(f"{self.name} gave pixels that are not finite numbers.")
        if frames.shape[1] < spec.num_frames:
            raise UserError(
                f"{self.name} gave {frames.shape[1]} frames; the protocol looks at {spec.num_frames}."
            )
        levels = (frames[0, : spec.num_frames] * 255).round().clip(0, 255).astype(np.uint8)
        return resize_frames(levels, spec.height_width, spec.resize)

    def _asked(self, clip: Clip, protocol: Protocol) -> dict[str, Any]:
        """What the pipeline takes of a real clip and of the protocol."""
        if "prompt" in self.known and not clip.caption:
            raise UserError("A real clip has no caption to ask the pipeline with.")
        length = clip_of(protocol).num_frames
        offered = {"prompt": clip.caption, "num_frames": length, "video_length": length}
        if protocol.condition_frames:
            offered["image"] = Image.fromarray(clip.video[0])
        return {name: value for name, value in offered.items() if name in self.known}


def check_task(protocol: Protocol) -> None:
    """Raise UserError for a task that no pipeline does, before one is loaded."""
    if protocol.task == "reconstruction" or protocol.condition_frames > 1:
        asked = (
            "is a reconstruction"
            if protocol.task == "reconstruction"
            else f"gives {protocol.condition_frames} frames"
        )
        raise UserError(
            f"A pipeline is asked with a caption, an image or both; protocol {protocol.name} {asked}. "
            "Score videos that it made elsewhere with --videos."
        )


def load_pipeline(name: str, dtype: str = "float32") -> Any:
    """A diffusers pipeline by hub name or folder, on the GPU if there is one.

    Raises UserError where it cannot be loaded.
    """
    from diffusers import DiffusionPipeline  # slow to import

    try:
        pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be loaded as a diffusers pipeline ({error}).") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(best_device())
