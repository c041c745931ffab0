"""Where a benchmark's images come from: one-frame clips of an arvid checkpoint, or a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from arvid.contracts import UserError
from arvid.suites.checkpoint_sampler import CheckpointSampler
from arvid.suites.image_benchmarks.sampling import Images, ImageSampler


def as_images(clips: CheckpointSampler) -> ImageSampler:
    """The frames of a sampler of one-frame clips. The first seed begins the random stream of the whole batch."""
    return lambda prompts, seeds: clips(prompts, seeds[0])[:, 0]


class PipelineSampler:
    """Any text-to-image pipeline that is called as diffusers' are.

    Args:
        pipeline: takes `prompt`, `generator` (one for each image) and `output_type="np"`, and gives an object
            whose `images` are float (B, H, W, 3) in [0, 1].
        arguments: what else it is called with, e.g. `num_inference_steps`.
    """

    def __init__(
        self, pipeline: Callable[..., Any], arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.arguments = dict(arguments or {})

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        # on the CPU: the same noise whatever the pipeline runs on
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        made = self.pipeline(
            prompt=list(prompts), generator=generators, output_type="np", **self.arguments
        )
        images = np.asarray(made.images, dtype=np.float32)
        if not np.isfinite(images).all():
            raise UserError("The pipeline gave images that are not finite numbers.")
        return (images * 255).round().clip(0, 255).astype(np.uint8)
