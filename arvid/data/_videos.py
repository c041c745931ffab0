"""The videos of a dataset that can be used: rows of its table, and what their files are like."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arvid.data._entries import Entries, Entry, sections
from arvid.data.clips import ClipSpec, frames_needed
from arvid.data.video import Probe

Rows = NDArray[np.int64]


class Videos(Sequence[tuple[Entry, Probe]]):
    """Some of a dataset's videos, each made when it is asked for.

    Args:
        entries: the dataset's.
        rows: which of them (N,).
        probes: what files are like of which the table does not say it.
    """

    def __init__(self, entries: Entries, rows: Rows, probes: Mapping[Path, Probe]) -> None:
        self.entries = entries
        self.rows = rows.astype(np.uint32)
        self.probes = probes

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Entry, Probe]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Entry, Probe]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        entry = self.entries[row]
        return entry, self.entries.probe(row, self.probes.get(entry.path))

    def files(self) -> DistinctFiles:
        """The files that they are in."""
        return DistinctFiles(self.entries, self.rows.astype(np.int64))

    def digest(self) -> list[str]:
        """Hash of what the table says of them, for those whose files are not looked at."""
        return [self.entries.digest, hashlib.sha256(self.rows.tobytes()).hexdigest()]


class DistinctFiles:
    """The files of rows, each once: many captions, or many parts, may be of one video.

    Args:
        entries: the dataset's.
        rows: which of them (N,).
    """

    def __init__(self, entries: Entries, rows: Rows) -> None:
        self.dataset = entries
        numbers = pa.array(_file_numbers(entries)[rows] if len(rows) else rows).dictionary_encode()
        self.rows = rows
        self.of_row: NDArray[np.int32] = numbers.indices.to_numpy()
        """Which file a row is of (N,)."""
        first = np.zeros(len(numbers.dictionary), np.int64)
        first[self.of_row[::-1]] = np.arange(len(rows))[::-1]
        self.first_rows: Rows = rows[first]
        """A row of each file."""
        found = (entries[row] for row in self.first_rows.tolist())
        self.entries = [dataclasses.replace(entry, start=None, end=None) for entry in found]
        """One of each."""

    def with_any(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which files have any of the chosen ones (N,) among their rows."""
        found = np.zeros(len(self.entries), bool)
        found[self.of_row[chosen]] = True
        return found

    def rows_of(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows of some of the files."""
        return self.rows[chosen[self.of_row]]


def _file_numbers(entries: Entries) -> NDArray[np.int32]:
    """A number for each row (N,), the same for rows of one file."""
    paths = entries.table.column("path").dictionary_encode()
    return np.concatenate([chunk.indices.to_numpy() for chunk in paths.chunks])


def is_long_enough(
    entries: Entries, rows: Rows, files: DistinctFiles, probes: Mapping[Path, Probe], clip: ClipSpec
) -> NDArray[np.bool_]:
    """Which rows (N,) have the frames that a clip needs. Like `Entries.probe`, for all rows at once."""
    num_frames, fps = (
        np.require(entries.numbers(column), requirements="W") for column in ("num_frames", "fps")
    )
    if probes:
        found = [probes.get(entry.path) for entry in files.entries]
        nums = np.array([getattr(probe, "num_frames", np.nan) for probe in found])[files.of_row]
        rates = np.array([getattr(probe, "fps", np.nan) for probe in found])[files.of_row]
        num_frames[files.rows] = np.where(np.isnan(nums), num_frames[files.rows], nums)
        fps[files.rows] = np.where(np.isnan(fps[files.rows]), rates, fps[files.rows])
    num_frames, fps = num_frames[rows], fps[rows]
    if entries.has("start") or entries.has("end"):
        start, end = (entries.numbers(column)[rows] for column in ("start", "end"))
        _, num_frames = sections(start, end, num_frames, fps)
    distinct = pa.array(fps).dictionary_encode()
    needed = np.array([frames_needed(x, clip) for x in distinct.dictionary.to_pylist()], np.int64)
    enough: NDArray[np.bool_] = num_frames >= needed[distinct.indices.to_numpy()]
    if clip.fps is not None:
        _correct_timed(enough, entries, rows, files, probes, clip)
    return enough


def _correct_timed(
    enough: NDArray[np.bool_],
    entries: Entries,
    rows: Rows,
    files: DistinctFiles,
    probes: Mapping[Path, Probe],
    clip: ClipSpec,
) -> None:
    """Set `enough` (N,) anew for rows of videos whose rate varies: a clip lasts so many seconds there."""
    found = [probes.get(entry.path) for entry in files.entries]
    timed = [i for i, probe in enumerate(found) if probe and probe.times is not None]
    if not timed:
        return
    of_all = np.zeros(len(entries), bool)
    of_all[rows] = enough
    start, end = (entries.numbers(column) for column in ("start", "end"))
    order = np.argsort(files.of_row, kind="stable")
    numbers = files.of_row[order]
    for i in timed:
        own = files.rows[order[np.searchsorted(numbers, i) : np.searchsorted(numbers, i + 1)]]
        probe = found[i]
        assert probe is not None
        of_all[own] = _last_long_enough(probe, clip, start[own], end[own])
    enough[:] = of_all[rows]


def _last_long_enough(
    probe: Probe, clip: ClipSpec, start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which parts (N,), in seconds, of a video whose rate varies last as long as a clip; NaN is an open end."""
    times = probe.times
    assert times is not None
    first = np.searchsorted(times - times[0], np.nan_to_num(start, nan=0.0))
    last = np.searchsorted(times - times[0], np.where(np.isnan(end), np.inf, end))
    has_any: NDArray[np.bool_] = last > first
    if clip.short != "drop":
        return has_any
    seconds = (clip.num_frames - 1) / clip.clip_fps(probe.fps)
    latest = times[np.maximum(last, 1) - 1] + 0.5 / probe.fps - seconds
    return has_any & (times[np.minimum(first, len(times) - 1)] <= latest)
