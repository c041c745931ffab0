"""Where a benchmark's images come from: one-frame clips of an arvid checkpoint, or a diffusers pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvid.contracts import SamplingOptions, UserError
from arvid.evaluation.image_benchmarks.sampling import Images
from arvid.files import sha256_file
from arvid.sampling.sample import Conditions, clip_grid, sample
from arvid.training.generator_module import GeneratorModule, checkpoint_path


class CheckpointSampler:
    """One-frame clips of a generator. The first seed begins the random stream of the whole batch.

    Raises UserError for a model that takes no text, or whose tokenizer has no clips of one frame.
    """

    def __init__(self, model: GeneratorModule, options: SamplingOptions | None = None) -> None:
        if model.conditioner.spec.text_dim is None:
            raise UserError("This model was trained without captions: it cannot follow prompts.")
        clip_grid(model, 1)
        self.model = model
        self.options = options or model.sampling

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        conditions = Conditions(num_clips=len(prompts), captions=list(prompts))
        clips = sample(
            self.model,
            conditions,
            num_frames=1,
            options=self.options,
            seed=seeds[0],
            progress=False,
        )
        return clips[:, 0]

    def describe(self, checkpoint: Path) -> dict[str, Any]:
        """The model as plain data, with the setting and factors that its rows bear."""
        description = self.model.description
        path = checkpoint_path(checkpoint)
        return {
            "kind": "checkpoint",
            "name": checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem,
            "checkpoint_sha256": sha256_file(path),
            "sampling": dataclasses.asdict(self.options),
            **{key: description[key] for key in ("setting", "setting_hash", "factors", "options")},
        }


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
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
