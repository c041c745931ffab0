"""The values of a `fit` configuration that a plan needs. Datasets are not built, so none of their files is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arvid.contracts import UserError
from arvid.data.clips import ClipSpec

AVERAGING = "EMAWeightAveraging"
GENERATOR = "GeneratorModule"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The parts of a configuration that decide about costs."""

    model: Mapping[str, Any]
    """Constructor arguments of the LightningModule, as plain data."""
    is_generator: bool
    """Whether a generator is trained; otherwise a tokenizer."""
    name: str
    """Name of the first configuration file's setting, such as `clips`."""
    clip_shape: tuple[int, int, int]
    """Frames, height and width of a clip."""
    num_clips: int | None
    """Clips of the training set; None if the configuration does not hold it."""
    batch_size: int
    """Clips of a micro-batch."""
    clips_per_step: int | None
    """Clips of an optimiser step over all processes; None: one micro-batch of each process."""
    max_steps: int
    """Optimiser steps of the training; -1: no end."""
    precision: str
    """Lightning's precision, such as "bf16-mixed"."""
    averages: bool
    """Whether EMA weights are kept."""
    num_classes: int
    value_names: dict[str, list[str]]


def read_setting(
    config: Mapping[str, Any],
    names: Sequence[str],
    *,
    clip_shape: tuple[int, int, int] | None = None,
    num_clips: int | None = None,
) -> Setting:
    """The setting of a parsed configuration.

    Args:
        config: see `arvid.training.cli.parse_fit`.
        names: names of its files, as given to --config.
        clip_shape: frames, height and width of the clips; by default from the dataset's options.
        num_clips: clips of the training set; by default from the dataset's options, if they hold it.

    Raises UserError for a configuration without a model, and if the dataset's options do not hold the clips' shape.
    """
    model, data, trainer = (config[key] for key in ("model", "data", "trainer"))
    if not model:
        raise UserError("The configuration has no model: add --config paradigms/... and sizes/...")
    train = data["train"]
    cls = _class(train["class_path"])
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    options = train.get("init_args") or {}
    return Setting(
        model=model["init_args"],
        is_generator=str(model["class_path"]).endswith(f".{GENERATOR}"),
        name=_setting_name(names),
        clip_shape=clip_shape or _clip_shape(train),
        num_clips=num_clips or options.get("num_clips"),
        batch_size=data["batch_size"],
        clips_per_step=data["clips_per_step"],
        max_steps=trainer["max_steps"],
        precision=str(trainer["precision"] or "32-true"),
        averages=any(str(c["class_path"]).endswith(f".{AVERAGING}") for c in callbacks),
        num_classes=len(cls.classes),
        value_names={name: list(values) for name, values in cls.value_names.items()},
    )


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _setting_name(names: Sequence[str]) -> str:
    """`clips` for `configs/settings/clips.yaml`; empty if no file is in a folder `settings`."""
    for name in names:
        folder, _, file = name.removesuffix(".yaml").rpartition("/")
        if folder.endswith("settings"):
            return file.removesuffix("-tokenizers")
    return ""


def _clip_shape(train: Mapping[str, Any]) -> tuple[int, int, int]:
    options = train.get("init_args") or {}
    inner = options.get("dataset")
    if isinstance(inner, Mapping):  # windows of another dataset's clips
        return options["num_frames"], *_clip_shape(inner)[1:]
    if "clip" in options:
        clip = ClipSpec(**(options["clip"] or {}))
        frames, size = clip.num_frames, clip.size
    elif "num_frames" in options and "size" in options:
        frames, size = options["num_frames"], options["size"]
    else:
        raise UserError(
            f"The options of {train['class_path']} do not say how large its clips are: "
            "add --clip FRAMES HEIGHT WIDTH."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return frames, height, width
