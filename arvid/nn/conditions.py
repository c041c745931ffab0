"""The table of conditions: what a clip can be generated from besides its text.

A condition is one class that says all there is to know of it: the type of its values (class ids, numbers or vectors),
whether a clip has one value or one for each frame, what stands for an unknown value, how the values are cut with a
clip, where a dataset gives them, which flag gives them on the command line, and what embeds them. A new condition is
one more such class, named in `arvid/registry.py` or by an entry point of the group `arvid.conditions` (see
docs/extending.md). `conditions: [NAME]` in a model's configuration switches it on.

Values are NumPy arrays here and on disk, and tensors inside models. Commands parse their arguments with this module,
so it imports no torch: embedders are imported when a model is built.
"""

from __future__ import annotations

import argparse
import math
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
    """A condition other than text; the subclasses below are the types of values that there are.

    Every clip of a dataset has values of one shape: () or (K,) for each clip, (T,) or (T, K) for its T frames.
    """

    name: ClassVar[str]
    """As in the registry: key of batches, of `Clip.conditions` and of configurations."""
    per_frame: ClassVar[bool] = False
    """Whether there is a value for each frame. Frame i's value says what leads to frame i from the one before."""
    help: ClassVar[str]
    """Of the flag."""
    ignorable: ClassVar[bool] = False
    """Whether the flag may be given for a model without this condition, because the command uses it otherwise too."""
    dtype: ClassVar[type[np.generic]]
    """Of the values of a clip, and on disk; in a batch floats are float32."""
    unknown: ClassVar[float]
    """Value that stands for an unknown one: in a model it becomes a learned null token."""

    # Values

    def of_clip(self, clip: Clip) -> Array:
        """The clip's values: its field of this name, or else its entry of `Clip.conditions`."""
        in_field = self.name in FIELDS
        value = getattr(clip, self.name) if in_field else clip.conditions.get(self.name)
        return np.asarray(self.unknown if value is None else value, self.dtype)

    def cut(self, value: Array, start: int, num_frames: int) -> Array:
        """The values of `num_frames` frames from `start` on, unknown where the clip has ended; (B, T, ...) likewise.

        Values per clip stay as they are.
        """
        if not self.per_frame:
            return value
        part = value[start : start + num_frames]
        missing = num_frames - len(part)
        widths = [(0, missing), *[(0, 0)] * (part.ndim - 1)]
        return np.pad(part, widths, constant_values=self.unknown)

    def batch(self, values: Sequence[Any]) -> Array:
        """The values of several clips (B, ...), int64 or float32. Raises UserError if they differ in shape."""
        arrays = [np.asarray(value, self.dtype) for value in values]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise UserError(
                f"The condition {self.name} has values of different shapes: {sorted(shapes)}. Every clip of a dataset "
                "must have as many."
            )
        stacked = np.stack(arrays)
        return stacked.astype(np.float32) if stacked.dtype.kind == "f" else stacked

    @abstractmethod
    def known(self, value: Tensor) -> Tensor:
        """True where a value is known; without the axis of a vector's components."""

    def check(self, value: Tensor, size: int) -> None:
        """Raise UserError for values that a model of this size does not know; by default it knows all."""
        return

    # Models

    @abstractmethod
    def size(self, names: Sequence[str]) -> int:
        """Number of class ids, or of a vector's components, in data that names them so (`VideoDataset.value_names`).

        Raises UserError where the data names none, but must.
        """

    @abstractmethod
    def embedder(self, size: int, dim: int, num_frames: int) -> nn.Module:
        """What embeds the values, unknown ones replaced by 0.

        Per clip: (B[, K]) -> (B, D). Per frame: values (B, t, F[, K]) of t latent frames, each of F = `num_frames`
        frames, and which of them are known (B, t, F) -> (B, t, D).
        """

    # Command line

    @property
    def flag(self) -> str:
        """As in `--action-vectors`."""
        return "--" + self.name.replace("_", "-")

    def add_argument(self, parser: argparse._ActionsContainer) -> None:
        """Declare the flag."""
        parser.add_argument(
            self.flag, type=self.parse, metavar=self.name.upper(), dest=self.name, help=self.help
        )

    def parse(self, text: str) -> Any:
        """The flag's argument, as far as it can be read without a model: the rows of all frames, or one value.

        Rows are separated by `separator`, or are the lines of a file. Raises argparse.ArgumentTypeError.
        """
        if not self.per_frame:
            return self.parse_one(text)
        path = Path(text)
        rows = path.read_text().splitlines() if path.is_file() else text.split(self.separator)
        return [self.parse_one(row.strip()) for row in rows if row.strip()]

    separator: ClassVar[str] = ","

    @abstractmethod
    def parse_one(self, text: str) -> Any:
        """One value of the flag's argument. Raises argparse.ArgumentTypeError."""

    def given(self, parsed: Any, names: Sequence[str], num_frames: int) -> Array:
        """The values that `parse` found, for clips of a model whose data has these `names`.

        Raises UserError for an unknown name, and if there is not a row for each frame.
        """
        if not self.per_frame:
            return np.asarray(self.value(parsed, names), self.dtype)
        if len(parsed) != num_frames:
            raise UserError(
                f"{self.flag} has {len(parsed)} rows, but the clips have {num_frames} frames: give one row for each "
                "frame, the first one included."
            )
        return self.batch([self.value(row, names) for row in parsed])

    def value(self, parsed: Any, names: Sequence[str]) -> Any:
        """One value as numbers. Raises UserError for an unknown name."""
        return parsed


class ClassId(ConditionType):
    """A condition whose values are whole numbers from 0 on, each of which stands for something with a name."""

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
    """A condition whose values are vectors of K numbers, which commas separate on the command line."""

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
                f"{self.flag}: {len(parsed)} numbers where {len(names)} are wanted ({', '.join(names)})."
            )
        return parsed


def _counted(condition: ConditionType, names: Sequence[str]) -> int:
    if not names:
        raise UserError(
            f"{condition.name} is a condition, but this dataset names no values of it (VideoDataset.value_names)."
        )
    return len(names)


class Label(ClassId):
    """The class label: a field of `Clip`, and named by `VideoDataset.classes`."""

    name = "label"
    help = "class number"

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
    help = "frame rate of the videos (default: 8), which models that know rates are told"
    ignorable = True

    def parse_one(self, text: str) -> float:
        return FPS.number(text)


class Actions(ClassId):
    """The key that is pressed at each frame, of a keyboard whose keys the dataset names."""

    name = "actions"
    per_frame = True
    help = "name or number of the action at each frame (stay,left,left,...), or a file with a row for each frame"


class ActionVectors(Vector):
    """What is done at each frame, as numbers whose meaning the dataset names: displacements or joint angles, say."""

    name = "action_vectors"
    per_frame = True
    help = "numbers of the action at each frame (0,0;1,0;...), or a file with a row for each frame"


BUILT_IN: tuple[type[ConditionType], ...] = (Label, Motion, Fps)
"""Conditions with a field of `Clip` and a switch of `GeneratorModule` each. Their context tokens come in this order,
before those of other conditions."""
FIELDS = tuple(cls.name for cls in BUILT_IN)


@cache
def condition(name: str) -> ConditionType:
    """The condition of a name. Raises UserError, with a suggestion, for one that is not registered."""
    found: ConditionType = registry.get("conditions", name)()
    return found


def all_conditions() -> list[ConditionType]:
    """All registered conditions, the built-in ones with a field of `Clip` first."""
    others = [name for name in registry.names("conditions") if name not in FIELDS]
    return [condition(name) for name in (*FIELDS, *others)]


def of_clip(clip: Clip) -> dict[str, Array]:
    """The values of a clip by condition: of its fields always, and of all that are in `Clip.conditions`."""
    return {name: condition(name).of_clip(clip) for name in (*FIELDS, *sorted(clip.conditions))}


def of_clips(clips: Sequence[Clip]) -> dict[str, list[Array]]:
    """The same of several clips. Raises UserError if they have not all the same conditions."""
    found = [of_clip(clip) for clip in clips]
    require_same(found)
    return {name: [values[name] for values in found] for name in found[0]} if found else {}


def require_same(found: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError if some clips have a condition that others have not."""
    names = {frozenset(values) for values in found}
    if len(names) > 1:
        differing = sorted(frozenset.union(*names) - frozenset.intersection(*names))
        raise UserError(f"Only some of the clips have values of {', '.join(differing)}.")


def cut_all(values: Mapping[str, Any], start: int, num_frames: int) -> dict[str, Array]:
    """`Clip.conditions` of a part of the clip."""
    return {
        name: condition(name).cut(np.asarray(value), start, num_frames)
        for name, value in values.items()
    }
