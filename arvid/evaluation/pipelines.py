"""Rows of diffusers video pipelines, which generate from the captions (and first frames) of the real clips."""

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
    """A diffusers video pipeline: text-to-video for generation, image-to-video for prediction from one given frame.

    Each clip has its own random generator (the protocol's seed + the clip's index), so it is the same in any batch. The
    pipeline is called with the protocol's number of frames if it has such an argument. Longer videos are cut and other
    sizes resized.

    Args:
        pipeline: called with `prompt` and `image` if it has these arguments, `generator`, `output_type="np"` and
            `arguments`. Returns an object with `frames`, float (1, T, H, W, 3) in [0, 1]. With an image, frame 0 is the
            image.
        name: of the row.
        source: its hub name or folder.
        dtype: dtype it was loaded with.
        arguments: further arguments of the call.
        protocol: the protocol that will score it.

    Raises UserError for a task that the pipeline cannot do.
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
        """Raise UserError unless the pipeline takes an image for prediction, and needs none for generation."""
        image = self.known.get("image")
        if protocol.task == "prediction" and image is None:
            raise UserError(
                f"{self.name} takes no image, so it cannot continue from the frame that protocol {protocol.name} "
                "gives: name an image-to-video pipeline."
            )
        if protocol.task == "generation" and image and image.default is image.empty:
            raise UserError(
                f"{self.name} needs an image, but protocol {protocol.name} gives only captions: name a "
                "text-to-video pipeline."
            )

    def _clip(self, clip: Clip, seed: int, protocol: Protocol) -> np.ndarray:
        """One clip, uint8 (T, H, W, 3), with the protocol's length and size."""
        spec = clip_of(protocol)
        output = self.pipeline(
            **{**self._inputs(clip, protocol), **self.arguments},
            generator=torch.Generator("cpu").manual_seed(seed),  # the same noise on any device
            output_type="np",
        )
        frames = np.asarray(output.frames, dtype=np.float32)
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

    def _inputs(self, clip: Clip, protocol: Protocol) -> dict[str, Any]:
        """Arguments from a real clip and the protocol, as far as the pipeline has them."""
        if "prompt" in self.known and not clip.caption:
            raise UserError("A real clip has no caption, so there is no prompt for the pipeline.")
        length = clip_of(protocol).num_frames
        offered = {"prompt": clip.caption, "num_frames": length, "video_length": length}
        if protocol.condition_frames:
            offered["image"] = Image.fromarray(clip.video[0])
        return {name: value for name, value in offered.items() if name in self.known}


def check_task(protocol: Protocol) -> None:
    """Raise UserError for a task that no pipeline can do. Called before a pipeline is loaded."""
    if protocol.task == "reconstruction" or protocol.condition_frames > 1:
        reason = (
            "is a reconstruction"
            if protocol.task == "reconstruction"
            else f"gives {protocol.condition_frames} frames"
        )
        raise UserError(
            f"A pipeline takes a caption, an image or both; protocol {protocol.name} {reason}. "
            "Score videos that it made elsewhere with --videos."
        )


def load_pipeline(name: str, dtype: str = "float32") -> Any:
    """A diffusers pipeline by hub name or folder, on the GPU if there is one.

    Raises UserError if it cannot be loaded.
    """
    from diffusers import DiffusionPipeline  # slow to import

    try:
        pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be loaded as a diffusers pipeline ({error}).") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(best_device())
