"""Loads trained models from a run folder, a file or the Hugging Face Hub, and samples clips from them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.api.clips import Clips
from arvid.api.repository import fetch, is_hub_name
from arvid.contracts import UserError
from arvid.evaluation.rows import records_folder
from arvid.nn.conditions import ConditionType, condition
from arvid.ranges import FILE_FPS, at_least
from arvid.sampling.first_frames import read_first_frames
from arvid.sampling.sample import requested, sample
from arvid.training.generator_module import GeneratorModule, checkpoint_path, load_generator


@dataclass(frozen=True)
class Model:
    """A trained generator with its tokenizer. `load` makes it."""

    module: GeneratorModule
    """The network and all its parts, as a PyTorch module."""
    path: Path
    """File of the weights."""

    @property
    def name(self) -> str:
        """Name of the run folder, which is the name of its row in tables."""
        return records_folder(self.path).name

    @property
    def dtype(self) -> str:
        """Type of the generator's weights."""
        return str(self.module.description["options"].get("dtype", "float32"))

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the training clips."""
        return self.module.clip_shape

    def sample(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        count: int = 1,
        frames: int | None = None,
        seed: int = 0,
        first_frames: str | Path | NDArray[np.uint8] | None = None,
        num_first_frames: int = 1,
        negative_prompt: str | None = None,
        conditions: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Clips:
        """Generate clips, as `arvid sample` does.

        Args:
            prompt: caption of the clips, or a list with a caption for each clip.
            count: number of clips; with a list of captions, clips per caption.
            frames: frames per clip; by default as trained.
            seed: seed of all random numbers. The same seed, count and frames give the same clips.
            first_frames: video or image to continue: a path, or an array uint8 (k, H, W, 3) of the model's size.
            num_first_frames: number of frames to take from the file.
            negative_prompt: negative prompt of classifier-free guidance.
            conditions: other conditions by name: {"label": 3}, {"actions": ["stay", "left", ...]}.
            options: sampling options by name: {"guidance": 4.0}. `model.module.sampling` has the defaults.
            progress: show a progress bar.

        Raises UserError for conditions, options and sizes that the model does not have.
        """
        at_least(1).require(count=count)
        captions = _captions(prompt, count)
        num_clips = count if captions is None else len(captions)
        parsed = {name: _parsed(name, value) for name, value in (conditions or {}).items()}
        given = requested(
            self.module,
            num_clips,
            prompts=captions,
            negative_prompt=negative_prompt,
            values=parsed,
            num_frames=frames,
        )
        first = None if first_frames is None else self._first(first_frames, num_first_frames)
        videos = sample(
            self.module,
            given,
            num_frames=frames,
            first_frames=None if first is None else np.repeat(first[None], num_clips, axis=0),
            options=self.module.sampling.replace(**(options or {})),
            seed=seed,
            progress=progress,
        )
        return Clips(videos, captions or (), parsed.get("fps", FILE_FPS))

    def _first(self, given: str | Path | NDArray[np.uint8], num: int) -> NDArray[np.uint8]:
        if isinstance(given, (str, Path)):
            return read_first_frames(Path(given), num, size=self.clip_shape[1:])
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[-1] != 3:
            raise UserError(
                f"first_frames must be uint8 (k, H, W, 3), not {given.dtype} {given.shape}."
            )
        return given

    def __repr__(self) -> str:
        factors = ", ".join(self.module.description["factors"].values())
        frames, height, width = self.clip_shape
        millions = sum(p.numel() for p in self.module.paradigm.parameters()) / 1e6
        text = ["text"] if self.module.conditioner.text is not None else []
        known = ", ".join([*text, *self.module.conditioner.sizes]) or "none"
        return (
            f"Model({self.name}: {factors}; {millions:.3g} M parameters; {frames} frames of {width}x{height}; "
            f"conditions: {known})"
        )


def load(source: str | Path, *, dtype: str = "float32", trust: Iterable[str] = ()) -> Model:
    """A trained model: on the GPU if there is one, with EMA weights if stored.

    Args:
        source: run folder, checkpoint file, or `hf://user/name` for a model that `arvid push` has published
            (`hf://user/name@REVISION` for a certain version).
        dtype: type of the generator's weights: "float32", "bfloat16" or "float16".
        trust: packages whose unregistered classes the checkpoint may name (see `arvid.trust`).

    Raises UserError if the model is missing, damaged or not arvid's. No code in it is run.
    """
    path = locate(source)
    return Model(load_generator(path, dtype=dtype, trust=trust), path)


Source = Model | str | Path
"""A model, or what `load` takes."""


def locate(source: Source) -> Path:
    """File of a model's weights; a model of the Hub is downloaded. Raises UserError if there is none."""
    if isinstance(source, Model):
        return source.path
    return fetch(str(source)) if is_hub_name(source) else checkpoint_path(source)


def _captions(prompt: str | Sequence[str] | None, count: int) -> list[str] | None:
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("The list of prompts is empty.")
    return [text for text in prompts for _ in range(count)]


def _parsed(name: str, value: Any) -> Any:
    """The value of a condition, from Python data or text of the command line. Raises UserError if it is invalid."""
    kind = condition(name)
    try:
        return kind.parse(_as_text(kind, value))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name}: {error}.") from error


def _as_text(kind: ConditionType, value: Any) -> str:
    """A value as the command line takes it: rows of frames joined by the condition's separator."""
    if isinstance(value, str):
        return value
    rows = list(value) if kind.per_frame else [value]
    return kind.separator.join(",".join(map(str, np.atleast_1d(row).tolist())) for row in rows)
