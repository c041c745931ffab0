"""The usable videos of a dataset: rows of its table, with the probes of their files."""

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
    """Some videos of a dataset. Indexing makes an entry and its probe.

    Args:
        entries: all entries of the dataset.
        rows: rows of the videos (N,).
        probes: probes of the files whose frames or rate the table does not state.
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
        """The files of these videos."""
        return DistinctFiles(self.entries, self.rows.astype(np.int64))

    def digest(self) -> list[str]:
        """Hashes of the table's columns and of the rows: the identity of videos whose files are not looked at."""
        return [self.entries.digest, hashlib.sha256(self.rows.tobytes()).hexdigest()]


class DistinctFiles:
    """The files of some rows, each once. Several rows (captions, parts) can belong to one file.

    Args:
        entries: all entries of the dataset.
        rows: some rows (N,).
    """

    def __init__(self, entries: Entries, rows: Rows) -> None:
        self.dataset = entries
        numbers = pa.array(_file_numbers(entries)[rows] if len(rows) else rows).dictionary_encode()
        self.rows = rows
        self.of_row: NDArray[np.int32] = numbers.indices.to_numpy()
        """File index of each row (N,)."""
        first = np.zeros(len(numbers.dictionary), np.int64)
        # With repeated indices the last assignment wins, so in reverse order the first row does.
        first[self.of_row[::-1]] = np.arange(len(rows))[::-1]
        self.first_rows: Rows = rows[first]
        """First row of each file."""
        found = (entries[row] for row in self.first_rows.tolist())
        self.entries = [dataclasses.replace(entry, start=None, end=None) for entry in found]
        """An entry of each whole file."""

    def with_any(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each file, whether any of its rows is chosen (N,)."""
        found = np.zeros(len(self.entries), bool)
        found[self.of_row[chosen]] = True
        return found

    def rows_of(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows of the chosen files."""
        return self.rows[chosen[self.of_row]]


def _file_numbers(entries: Entries) -> NDArray[np.int32]:
    """A number for each row (N,), equal for rows of one file."""
    paths = entries.table.column("path").dictionary_encode()
    return np.concatenate([chunk.indices.to_numpy() for chunk in paths.chunks])


def is_long_enough(
    entries: Entries, rows: Rows, files: DistinctFiles, probes: Mapping[Path, Probe], clip: ClipSpec
) -> NDArray[np.bool_]:
    """For each row (N,), whether it has the frames of a clip. Like `Entries.probe`, for all rows at once."""
    num_frames, fps = (
        np.require(entries.numbers(column), requirements="W") for column in ("num_frames", "fps")
    )
    if probes:  # a probe's frame count replaces the table's; the table's rate replaces a probe's
        found = [probes.get(entry.path) for entry in files.entries]
        nums = np.array([getattr(probe, "num_frames", np.nan) for probe in found])[files.of_row]
        rates = np.array([getattr(probe, "fps", np.nan) for probe in found])[files.of_row]
        num_frames[files.rows] = np.where(np.isnan(nums), num_frames[files.rows], nums)
        fps[files.rows] = np.where(np.isnan(fps[files.rows]), rates, fps[files.rows])
    num_frames, fps = num_frames[rows], fps[rows]
    if entries.has("start") or entries.has("end"):
        start, end = (entries.numbers(column)[rows] for column in ("start", "end"))
        _, num_frames = sections(start, end, num_frames, fps)
    distinct = pa.array(fps).dictionary_encode()  # few rates: `frames_needed` is slow
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
    """Correct `enough` (N,) in place for videos with a varying rate, whose clips are measured in seconds."""
    found = [probes.get(entry.path) for entry in files.entries]
    timed = [i for i, probe in enumerate(found) if probe and probe.times is not None]
    if not timed:
        return
    of_all = np.zeros(len(entries), bool)
    of_all[rows] = enough
    start, end = (entries.numbers(column) for column in ("start", "end"))
    # Rows sorted by file: those of one file are a slice.
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
    """For each part (N,) of a video with a varying rate, whether it lasts as long as a clip.

    `start` and `end` are in seconds; NaN is an open end.
    """
    times = probe.times
    assert times is not None
    first = np.searchsorted(times - times[0], np.nan_to_num(start, nan=0.0))
    last = np.searchsorted(times - times[0], np.where(np.isnan(end), np.inf, end))
    has_any: NDArray[np.bool_] = last > first
    if clip.short != "drop":
        return has_any
    seconds = (clip.num_frames - 1) / clip.clip_fps(probe.fps)
    # The same limit as in `clips._nearest_in_time`.
    latest = times[np.maximum(last, 1) - 1] + 0.5 / probe.fps - seconds
    return has_any & (times[np.minimum(first, len(times) - 1)] <= latest)
