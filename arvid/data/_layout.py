"""Facts about a probed file: number of frames, rate, times, and the key frames where decoding can begin."""

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
"""Most key frames kept of a file. If it has more, evenly spaced ones are kept."""


class Key(NamedTuple):
    """A key frame: its index, and the timestamps of its packet, by which a seek recognises it."""

    frame: int
    pts: int | None
    dts: int | None


@dataclass(frozen=True)
class Layout:
    """Key frames and frame times of a file.

    The default is that of an unknown file, which is decoded from its start.
    """

    keys: tuple[Key, ...] = ()
    """Key frames by index. Decoding from any of them gives the same frames as decoding from the start."""
    turn: Orientation = AS_STORED
    """The orientation that the file states."""
    tick: float = 0.0
    """Unit of the timestamps, in seconds."""
    in_order: bool = False
    """Whether each frame has its own timestamp. False for packed AVI files, whose timestamps are out of order."""
    span: tuple[int, int] = (0, 0)
    """First and last timestamp, in ticks."""
    runs: tuple[tuple[int, int], ...] = ()
    """Run lengths of the frame durations, as (ticks, frames). Only for a file with a varying rate."""

    @cached_property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds (T,) at which the frames are shown, ascending. None for a constant rate."""
        if not self.runs:
            return None
        steps = np.repeat(*np.array(self.runs, np.int64).T)
        return np.asarray(np.cumsum([self.span[0], *steps]) * self.tick)

    def key_before(self, index: int) -> Key | None:
        """The last key frame up to an index, or None."""
        return max((key for key in self.keys if key.frame <= index), default=None)


@dataclass(frozen=True)
class Probe:
    """Result of probing a file: number of decodable frames, mean frame rate, and size as displayed."""

    num_frames: int
    fps: float
    height: int
    width: int
    layout: Layout = Layout()
    as_stored: bool = True
    """Whether the stored pixels are square and not mirrored."""
    content: str = ""
    """Hash of the file's content; empty if it was not computed."""

    def time_of(self, index: int) -> float:
        """Seconds at which a frame is shown."""
        if self.times is not None:
            return float(self.times[index])
        first, last = self.layout.span  # a constant rate: interpolate
        return (first + (last - first) * index / max(1, self.num_frames - 1)) * self.layout.tick

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds (T,) at which the frames are shown, ascending. None for a constant rate."""
        return self.layout.times

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Probe:
        """Undo `dataclasses.asdict`. Raises TypeError or KeyError for other values."""
        layout = dict(value["layout"])
        layout["keys"] = tuple(Key(*key) for key in layout["keys"])
        layout["turn"] = Orientation(*layout["turn"])
        layout["span"] = tuple(layout["span"])
        layout["runs"] = tuple((int(step), int(count)) for step, count in layout["runs"])
        return cls(**{**value, "layout": Layout(**layout)})


def some_keys(keys: Sequence[Key]) -> tuple[Key, ...]:
    """At most MAX_KEYS evenly spaced key frames, with the first and the last."""
    if len(keys) <= MAX_KEYS:
        return tuple(keys)
    chosen = np.linspace(0, len(keys) - 1, MAX_KEYS).round().astype(int)
    return tuple(keys[i] for i in chosen)


def runs_of(stamps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Run lengths of the steps of ascending timestamps if the rate varies, else ().

    It varies if a frame is shown half a frame or more off its time by the mean rate. Another frame may be nearer then.
    """
    ticks = np.asarray(stamps, np.int64)
    if len(ticks) < 3:
        return ()
    steps = np.diff(ticks)
    even = np.linspace(ticks[0], ticks[-1], len(ticks))
    # One tick off is rounding, as in mkv files, whose tick is a millisecond.
    if np.abs(ticks - even).max() < max(0.5 * steps.mean(), 1.5):
        return ()
    return tuple((int(step), len(list(group))) for step, group in groupby(steps.tolist()))
