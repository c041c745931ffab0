"""Clips longer than the training clips: their real continuations, and tables of quality per autoregressive step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from arvid.contracts import UserError, VideoDataset
from arvid.data.clips import ClipSpec
from arvid.evaluation.records import ResultRecord
from arvid.experiments.paper import Cell, table
from arvid.training.generator_module import GeneratorModule
from arvid.training.instantiate import build, instantiate


def longer_frames(model: GeneratorModule, times: int) -> int:
    """Frames of a clip with `times` the trained number of latent frames."""
    grid = model.paradigm.grid
    return model.tokenizer.spec.num_frames(dataclasses.replace(grid, t=grid.t * times))


def continued(model: GeneratorModule, num_frames: int) -> tuple[VideoDataset, ClipSpec]:
    """The validation clips of a run with their real continuations, `num_frames` frames each, and how they are cut.

    Raises UserError if the clips have no continuation: rendered clips end with their last trained frame.
    """
    config: dict[str, Any] = model.description["validation"]
    values = dict(config["init_args"])
    clip: dict[str, Any]
    if "dataset" in values:  # windows
        config, clip = values["dataset"], {"size": list(model.clip_shape[1:])}
        if config["init_args"]["num_frames"] != num_frames:
            raise UserError(
                f"The run was trained on windows of clips with {config['init_args']['num_frames']} frames, so there "
                f"are no real clips with {num_frames} frames. Change --times, or train on windows of longer clips."
            )
    elif "clip" in values:
        clip = {**values["clip"], "num_frames": num_frames, "window": "start", "short": "drop"}
        values |= {"clip": clip, "clips_per_video": 1, "motion": False}
        config = {**config, "init_args": values}
    else:
        raise UserError(
            "The training clips of this run have no continuation. Train on windows (without --run)."
        )
    dataset: VideoDataset = build("datasets", config, what="The long validation set")
    return dataset, instantiate(ClipSpec, {**clip, "num_frames": num_frames}, what="Its clips")


def rendered_anew(model: GeneratorModule, num_frames: int) -> tuple[VideoDataset, ClipSpec]:
    """The validation clips of a run rendered with `num_frames` frames, and how they are cut.

    First frames, captions and attributes stay the same. The motion takes all frames, so it is slower than in training.
    """
    config: dict[str, Any] = model.description["validation"]
    values = {**config["init_args"], "num_frames": num_frames}
    dataset: VideoDataset = build(
        "datasets", {**config, "init_args": values}, what="The long validation set"
    )
    return dataset, ClipSpec(num_frames=num_frames, size=model.clip_shape[1:])


def step_tables(records: Sequence[ResultRecord], trained: int) -> list[str]:
    """Lines of one table per metric, with the columns of `shown_steps`. `trained`: latent frames of a training clip."""
    lines = []
    for metric in dict.fromkeys(name for r in records for name in r.rollout):
        curves = {r.name: r.rollout[metric].mean for r in records if metric in r.rollout}
        steps = shown_steps(max(len(curve) for curve in curves.values()), trained)
        rows: list[list[Cell]] = [
            [name, *(curve[step - 1] for step in steps)] for name, curve in curves.items()
        ]
        lines += [f"## {metric}", "", *table(["", *step_headings(steps, trained)], rows), ""]
    return lines


def shown_steps(total: int, trained: int) -> list[int]:
    """The first step, the last step of each trained length, and the last of `total` steps.

    Step k makes latent frame k + 1, so the first trained length ends with step `trained` - 1.
    """
    lengths = math.ceil((total + 1) / trained)
    ends = [i * trained - 1 for i in range(1, lengths + 1)]
    return sorted({1, *(step for step in ends if 0 < step <= total), total})


def step_headings(steps: Sequence[int], trained: int) -> list[str]:
    """`step 5 (2x)` for the last step of two trained lengths; `step 1` for a step within a length."""
    found = []
    for step in steps:
        lengths, rest = divmod(step + 1, trained)
        found.append(f"step {step}" + (f" ({lengths}x)" if not rest else ""))
    return found
