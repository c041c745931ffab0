"""What is known of a file's frames once it was looked at: number, rate, times, and where decoding can begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arvid.data._picture import AS_STORED, Orientation

MAX_KEYS = 512
"""Key frames that are remembered of a file, evenly spread where it has more."""


class Key(NamedTuple):
    """A key frame: its index as a frame, and the timestamps of its packet, which tell where a seek has landed."""

    frame: int
    pts: int | None
    dts: int | None


@dataclass(frozen=True)
class Layout:
    """Where decoding can begin in a file, and the times of its frames.

    All is empty for a file that nothing is known of: it is decoded from its start.
    """

    keys: tuple[Key, ...] = ()
    """Key frames by index: from each of them on, decoding gives the same frames as from the start."""
    turn: Orientation = AS_STORED
    """The orientation that the file states."""
    tick: float = 0.0
    """Seconds of one tick of the timestamps."""
    in_order: bool = False
    """Whether each frame bears its own timestamp; in packed AVI files they come out of order."""
    span: tuple[int, int] = (0, 0)
    """First and last timestamp, in ticks."""
    runs: tuple[tuple[int, int], ...] = ()
    """Only of a file whose rate varies: ticks from one frame to the next, and how often in a row."""

    @cached_property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds (T,) at which the frames are shown, ascending; None where the mean rate tells them."""
        if not self.runs:
            return None
        steps = np.repeat(*np.array(self.runs, np.int64).T)
        return np.asarray(np.cumsum([self.span[0], *steps]) * self.tick)

    def key_before(self, index: int) -> Key | None:
        """The last key frame up to an index, or None."""
        return max((key for key in self.keys if key.frame <= index), default=None)


@dataclass(frozen=True)
class Probe:
    """What a look at a whole file shows: frames that come out, mean frame rate, size as it is meant to be seen."""

    num_frames: int
    fps: float
    height: int
    width: int
    layout: Layout = Layout()
    as_stored: bool = True
    """Whether stored pixels are shown without mirroring, and are square."""
    content: str = ""
    """Hash of the file's content; empty where nobody has asked for it."""

    def time_of(self, index: int) -> float:
        """Seconds at which a frame is shown."""
        if self.times is not None:
            return float(self.times[index])
        first, last = self.layout.span
        return (first + (last - first) * index / max(1, self.num_frames - 1)) * self.layout.tick

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds (T,) at which the frames of a file with a varying rate are shown; None for a constant one."""
        return self.layout.times

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Probe:
        """From what `dataclasses.asdict` made of one. Raises TypeError or KeyError for anything else."""
        layout = dict(value["layout"])
        layout["keys"] = tuple(Key(*key) for key in layout["keys"])
        layout["turn"] = Orientation(*layout["turn"])
        layout["span"] = tuple(layout["span"])
        layout["runs"] = tuple((int(step), int(count)) for step, count in layout["runs"])
        return cls(**{**value, "layout": Layout(**layout)})


def some_keys(keys: Sequence[Key]) -> tuple[Key, ...]:
    """At most MAX_KEYS of them, evenly spread; the first and the last are among them."""
    if len(keys) <= MAX_KEYS:
        return tuple(keys)
    chosen = np.linspace(0, len(keys) - 1, MAX_KEYS).round().astype(int)
    return tuple(keys[i] for i in chosen)


def runs_of(stamps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Runs of ascending timestamps where their rate varies, else ().

    It varies if a frame is shown half a frame or more from where the mean rate puts it: then another may be nearest.
    """
    ticks = np.asarray(stamps, np.int64)
    if len(ticks) < 3:
        return ()
    steps = np.diff(ticks)
    even = np.linspace(ticks[0], ticks[-1], len(ticks))
    # A tick to and fro is rounding, as of the milliseconds of mkv files.
    if np.abs(ticks - even).max() < max(0.5 * steps.mean(), 1.5):
        return ()
    return tuple((int(step), len(list(group))) for step, group in groupby(steps.tolist()))
