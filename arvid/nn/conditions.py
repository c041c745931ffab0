"""The table of conditions other than text: class label, motion score, frame rate, actions.

Each condition is one class. It defines the type of the values (class ids, numbers or vectors), one value per clip or
one per frame, the value for "unknown", cutting along with the clip, the source in a dataset, the command-line flag and
the embedder. To add a condition, write a class and name it in `arvid/registry.py` or by an entry point of the group
`arvid.nn.conditions` (see docs/extending.md). `conditions: [NAME]` in a model's configuration turns it on.

Values are NumPy arrays here and on disk, and tensors inside models. Commands parse their arguments with this module,
so it does not import torch: embedders are imported when a model is built.
"""

from __future__ import annotations

import argparse
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from arvid import registry
from arvid.errors import UserError
from arvid.ranges import FINITE, FPS, at_least

if TYPE_CHECKING:
    from torch import Tensor, nn

    from arvid.contracts import Clip

Array = NDArray[Any]


class ConditionType(ABC):
    """A condition other than text. The subclasses below differ in the type of their values.

    All clips of a dataset have values of the same shape: () or (K,) per clip, (T,) or (T, K) per frame.
    """

    name: ClassVar[str]
    """Name in the registry; also the key in batches, `Clip.conditions` and configurations."""
    per_frame: ClassVar[bool] = False
    """Whether each frame has a value. Frame i's value describes the step from frame i-1 to frame i."""
    help: ClassVar[str]
    """Help text of the flag."""
    separator: ClassVar[str] = ","
    """Separates the values of frames in the argument of the flag."""
    ignorable: ClassVar[bool] = False
    """Whether models without this condition accept the flag, because the command has another use for it."""
    dtype: ClassVar[type[np.generic]]
    """Type of a clip's values, also on disk. In a batch, floats are float32."""
    unknown: ClassVar[float]
    """Placeholder for an unknown value; models replace it by a learned null token."""

    # Values

    def of_clip(self, clip: Clip) -> Array:
        """The clip's values: the field of this name, or else the entry in `Clip.conditions`."""
        in_field = self.name in FIELDS
        value = getattr(clip, self.name) if in_field else clip.conditions.get(self.name)
        return np.asarray(self.unknown if value is None else value, self.dtype)

    def cut(self, value: Array, start: int, num_frames: int) -> Array:
        """The values (num_frames, ...) from frame `start` on; frames after the clip's end are unknown.

        A value per clip is returned unchanged.
        """
        if not self.per_frame:
            return value
        part = value[start : start + num_frames]
        missing = num_frames - len(part)
        widths = [(0, missing), *[(0, 0)] * (part.ndim - 1)]
        return np.pad(part, widths, constant_values=self.unknown)

    def batch(self, values: Sequence[Any]) -> Array:
        """The stacked values of several clips, (B, ...), int64 or float32. Raises UserError if shapes differ."""
        arrays = [np.asarray(value, self.dtype) for value in values]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise UserError(
                f"The condition {self.name} has values of different shapes: {sorted(shapes)}. All clips of a dataset "
                "must have the same shape."
            )
        stacked = np.stack(arrays)
        return stacked.astype(np.float32) if stacked.dtype.kind == "f" else stacked

    @abstractmethod
    def known(self, value: Tensor) -> Tensor:
        """True where a value is known. A vector's components count as one value, so their axis is dropped."""

    def check(self, value: Tensor, size: int) -> None:
        """Raise UserError for values that a model of this size does not know. By default it knows all values."""
        return

    # Models

    @abstractmethod
    def size(self, names: Sequence[str]) -> int:
        """Number of class ids or of vector components, from the dataset's `VideoDataset.value_names`.

        Raises UserError if names are needed but empty.
        """

    @abstractmethod
    def embedder(self, size: int, dim: int, num_frames: int) -> nn.Module:
        """The module that embeds the values. Unknown values come to it as 0.

        Per clip: (B[, K]) -> (B, D). Per frame: values (B, t, F[, K]) of t latent frames with F = `num_frames` frames
        each, and a mask of known values (B, t, F) -> (B, t, D).
        """

    # Command line

    @property
    def flag(self) -> str:
        """The flag, such as `--action-vectors`."""
        return "--" + self.name.replace("_", "-")

    def add_argument(self, parser: argparse._ActionsContainer) -> None:
        """Declare the flag."""
        parser.add_argument(
            self.flag, type=self.parse, metavar=self.name.upper(), dest=self.name, help=self.help
        )

    def parse(self, text: str) -> Any:
        """Parse the flag's argument without a model: one value, or a row for each frame.

        Rows are separated by `separator`, or are the lines of a file. Raises argparse.ArgumentTypeError.
        """
        if not self.per_frame:
            return self.parse_one(text)
        # Path.is_file raises an error for a text that is longer than a path may be.
        is_file = os.path.isfile(text)
        rows = Path(text).read_text().splitlines() if is_file else text.split(self.separator)
        return [self.parse_one(row.strip()) for row in rows if row.strip()]

    @abstractmethod
    def parse_one(self, text: str) -> Any:
        """Parse one value of the flag's argument. Raises argparse.ArgumentTypeError."""

    def given(self, parsed: Any, names: Sequence[str], num_frames: int) -> Array:
        """The result of `parse` as numbers, for clips of a model whose data has these `names`.

        Raises UserError for an unknown name, and if the number of rows is not the number of frames.
        """
        if not self.per_frame:
            return np.asarray(self.value(parsed, names), self.dtype)
        if len(parsed) != num_frames:
            raise UserError(
                f"{self.flag} has {len(parsed)} rows, but the clips have {num_frames} frames: give one row for each "
                "frame, including the first."
            )
        return self.batch([self.value(row, names) for row in parsed])

    def value(self, parsed: Any, names: Sequence[str]) -> Any:
        """One value as numbers. Raises UserError for an unknown name."""
        return parsed


class ClassId(ConditionType):
    """A condition whose values are class ids: integers from 0, each with a name."""

    dtype = np.int64
    unknown = -1

    def known(self, value: Tensor) -> Tensor:
        return value >= 0

    def check(self, value: Tensor, size: int) -> None:
        if int(value.max()) >= size:
            one = self.name.removesuffix("s")
            raise UserError(
                f"{one.capitalize()} {int(value.max())} is unknown: this model knows {one}s 0 to {size - 1}."
            )

    def size(self, names: Sequence[str]) -> int:
        return _counted(self, names)

    def embedder(self, size: int, dim: int, num_frames: int) -> nn.Module:
        from torch import nn

        from arvid.nn.frame_conditions import FrameIds

        return FrameIds(size, num_frames, dim) if self.per_frame else nn.Embedding(size, dim)

    def parse_one(self, text: str) -> str:
        return text

    def value(self, parsed: str, names: Sequence[str]) -> int:
        if parsed.isdecimal():
            return int(parsed)
        if parsed not in names:
            raise UserError(f"{self.flag}: {parsed!r} is none of {', '.join(names)}.")
        return list(names).index(parsed)


class Number(ConditionType):
    """A condition whose values are numbers."""

    dtype = np.float64
    unknown = math.nan

    def known(self, value: Tensor) -> Tensor:
        return value.isfinite()

    def size(self, names: Sequence[str]) -> int:
        return 1

    def embedder(self, size: int, dim: int, num_frames: int) -> nn.Module:
        from arvid.nn.frame_conditions import FrameNumbers
        from arvid.nn.positions import ScalarEmbedding

        return FrameNumbers(1, num_frames, dim) if self.per_frame else ScalarEmbedding(dim)

    def parse_one(self, text: str) -> float:
        return FINITE.number(text)


class Vector(ConditionType):
    """A condition whose values are vectors of K numbers, separated by commas on the command line."""

    dtype = np.float32
    unknown = math.nan
    separator = ";"

    def known(self, value: Tensor) -> Tensor:
        return value.isfinite().all(-1)

    def size(self, names: Sequence[str]) -> int:
        return _counted(self, names)

    def embedder(self, size: int, dim: int, num_frames: int) -> nn.Module:
        from torch import nn

        from arvid.nn.frame_conditions import FrameNumbers

        return FrameNumbers(size, num_frames, dim) if self.per_frame else nn.Linear(size, dim)

    def parse_one(self, text: str) -> list[float]:
        return [FINITE.number(part) for part in text.split(",")]

    def value(self, parsed: list[float], names: Sequence[str]) -> list[float]:
        if len(parsed) != len(names):
            raise UserError(
                f"{self.flag}: got {len(parsed)} numbers, expected {len(names)} ({', '.join(names)})."
            )
        return parsed


def _counted(condition: ConditionType, names: Sequence[str]) -> int:
    if not names:
        raise UserError(
            f"{condition.name} is a condition, but this dataset has no names for its values "
            "(VideoDataset.value_names)."
        )
    return len(names)


class Label(ClassId):
    """The class label: a field of `Clip`. `VideoDataset.classes` has the names."""

    name = "label"
    help = "class label, an integer"

    def size(self, names: Sequence[str]) -> int:
        if not names:
            raise UserError("The class label is a condition, but this dataset has no classes.")
        return len(names)

    def parse_one(self, text: str) -> Any:
        return at_least(0).integer(text)

    def value(self, parsed: Any, names: Sequence[str]) -> int:
        return int(parsed)


class Motion(Number):
    """The motion score: mean displacement in pixels per frame. A field of `Clip`."""

    name = "motion"
    help = "motion score, pixels per frame"

    def parse_one(self, text: str) -> float:
        return at_least(0).number(text)


class Fps(Number):
    """Frames per second. A field of `Clip`."""

    name = "fps"
    help = "frame rate of the videos (default: 8); also a condition, if the model has it"
    ignorable = True

    def parse_one(self, text: str) -> float:
        return FPS.number(text)


class Actions(ClassId):
    """A discrete action for each frame, such as a pressed key. The dataset names the actions."""

    name = "actions"
    per_frame = True
    help = "name or number of the action at each frame (stay,left,left,...), or a file with a row for each frame"


class ActionVectors(Vector):
    """A continuous action for each frame, such as displacements or joint angles. The dataset names the components."""

    name = "action_vectors"
    per_frame = True
    help = "action vector for each frame (0,0;1,0;...), or a file with a row for each frame"


BUILT_IN: tuple[type[ConditionType], ...] = (Label, Motion, Fps)
"""Conditions with their own field in `Clip` and their own switch in `GeneratorModule`. Their context tokens come in
this order, before those of other conditions."""
FIELDS = tuple(cls.name for cls in BUILT_IN)


@cache
def condition(name: str) -> ConditionType:
    """The condition with a registered name. Raises UserError, with a suggestion, for other names."""
    found: ConditionType = registry.get("conditions", name)()
    return found


def all_conditions() -> list[ConditionType]:
    """All registered conditions, first those with a field in `Clip`."""
    others = [name for name in registry.names("conditions") if name not in FIELDS]
    return [condition(name) for name in (*FIELDS, *others)]


def of_clip(clip: Clip) -> dict[str, Array]:
    """The values of a clip by condition: those with a field in `Clip`, and all entries of `Clip.conditions`."""
    return {name: condition(name).of_clip(clip) for name in (*FIELDS, *sorted(clip.conditions))}


def of_clips(clips: Sequence[Clip]) -> dict[str, list[Array]]:
    """The values of several clips by condition. Raises UserError if not all clips have the same conditions."""
    found = [of_clip(clip) for clip in clips]
    require_same(found)
    return {name: [values[name] for values in found] for name in found[0]} if found else {}


def require_same(found: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError if some clips have a condition that other clips lack."""
    names = {frozenset(values) for values in found}
    if len(names) > 1:
        differing = sorted(frozenset.union(*names) - frozenset.intersection(*names))
        raise UserError(f"Only some of the clips have values of {', '.join(differing)}.")


def cut_all(values: Mapping[str, Any], start: int, num_frames: int) -> dict[str, Array]:
    """Cut all values of `Clip.conditions` to `num_frames` frames from `start` on."""
    return {
        name: condition(name).cut(np.asarray(value), start, num_frames)
        for name, value in values.items()
    }
