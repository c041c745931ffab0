"""Image samplers: one-frame clips of an arvid checkpoint, or a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from arvid.contracts import UserError
from arvid.suites.checkpoint_sampler import CheckpointSampler
from arvid.suites.image_benchmarks.sampling import Images, ImageSampler


def as_images(clips: CheckpointSampler) -> ImageSampler:
    """Image sampler from a sampler of one-frame clips. Only the first seed is used, for the whole batch."""
    return lambda prompts, seeds: clips(prompts, seeds[0])[:, 0]


class PipelineSampler:
    """A text-to-image pipeline with the interface of diffusers.

    Args:
        pipeline: takes `prompt`, `generator` (one per image) and `output_type="np"`. Returns an object with `images`,
            float (B, H, W, 3) in [0, 1].
        arguments: further arguments of the call, e.g. `num_inference_steps`.
    """

    def __init__(
        self, pipeline: Callable[..., Any], arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.arguments = dict(arguments or {})

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        # CPU generators give the same noise on any device
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        output = self.pipeline(
            prompt=list(prompts), generator=generators, output_type="np", **self.arguments
        )
        images = np.asarray(output.images, dtype=np.float32)
        if not np.isfinite(images).all():
            raise UserError("The pipeline gave images that are not finite numbers.")
        return (images * 255).round().clip(0, 255).astype(np.uint8)
