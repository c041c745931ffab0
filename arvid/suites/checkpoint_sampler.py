"""Samples clips from captions with an arvid generator, for the benchmark suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arvid.contracts import SamplingOptions, UserError
from arvid.sampling.sample import Conditions, clip_grid, sample
from arvid.training.checkpoint_io import checkpoint_sha256
from arvid.training.generator_module import GeneratorModule, checkpoint_path


class CheckpointSampler:
    """Maps captions and a seed to clips, deterministically.

    Args:
        model: see `arvid.training.generator_module.load_generator`.
        num_frames: length of each clip; None: as in training.
        values: values of conditions by name (see `arvid.nn.conditions`), the same for all clips. Others are unknown.
        options: sampling options; None: the model's.

    Raises UserError if the model takes no text, cannot make clips of this length, or was not trained with one of the
    conditions.
    """

    def __init__(
        self,
        model: GeneratorModule,
        *,
        num_frames: int | None = None,
        values: Mapping[str, Any] | None = None,
        options: SamplingOptions | None = None,
    ) -> None:
        if model.conditioner.text is None:
            raise UserError("This model was trained without captions: it cannot follow prompts.")
        for name in values or {}:
            if name not in model.conditioner.sizes:
                raise UserError(
                    f"A value of {name} was given, but this model was trained without this condition."
                )
        clip_grid(model, num_frames)  # raises UserError for an impossible length
        self.model = model
        self.num_frames = num_frames
        self.values = dict(values or {})
        self.options = options or model.sampling

    def __call__(
        self,
        captions: Sequence[str],
        seed: int,
        *,
        first_frames: UInt8[np.ndarray, "b k h w 3"] | None = None,
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        conditions = Conditions(
            num_clips=len(captions),
            captions=list(captions),
            values={name: [value] * len(captions) for name, value in self.values.items()},
        )
        return sample(
            self.model,
            conditions,
            num_frames=self.num_frames,
            first_frames=first_frames,
            options=self.options,
            seed=seed,
            progress=False,
        )

    def describe(self, checkpoint: Path) -> dict[str, Any]:
        """The model as plain data, with its setting, factors and options for the record."""
        description = self.model.description
        return {
            "kind": "checkpoint",
            "name": checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem,
            "checkpoint_sha256": checkpoint_sha256(checkpoint_path(checkpoint)),
            "sampling": self.options.changed(),
            **{key: description[key] for key in ("setting", "setting_hash", "factors", "options")},
        }
