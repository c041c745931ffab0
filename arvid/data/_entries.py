"""The videos of a dataset as columns of an Arrow table: no Python object is kept for each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from arvid.data._columns import SCHEMA, split_fractions
from arvid.data._names import names_of, section_name
from arvid.data.video import Probe
from arvid.files import sha256_json

_BLOCK = 2**16
"""Rows that are worked on at once."""


@dataclass(frozen=True)
class Entry:
    """One video of a dataset, or a part of one."""

    path: Path
    file_name: str
    """The file's path inside the dataset, with forward slashes."""
    caption: str = ""
    label: int | None = None
    start: float | None = None
    """Seconds at which the part begins and ends."""
    end: float | None = None

    @property
    def name(self) -> str:
        """The file's, and for a part of it the seconds as well: from 2 to 4.5 of "a.mp4" is "a@2-4.5.mp4"."""
        if self.start is None and self.end is None:
            return self.file_name
        return section_name(self.file_name, self.start, self.end)

    def section(self, probe: Probe) -> tuple[int, int]:
        """First frame of the part and its number of frames, in a video with this probe."""
        if probe.times is not None:
            times = probe.times - probe.times[0]
            ends = (
                0.0 if self.start is None else self.start,
                np.inf if self.end is None else self.end,
            )
            first, last = np.searchsorted(times, ends).tolist()
            return first, max(last - first, 0)
        start = np.nan if self.start is None else self.start
        end = np.nan if self.end is None else self.end
        first, count = sections(start, end, probe.num_frames, probe.fps)
        return int(first), int(count)


def sections(start: Any, end: Any, num_frames: Any, fps: Any) -> tuple[Any, Any]:
    """First frames (N,) and numbers of frames (N,) of parts of videos, given in seconds; NaN is an open end."""
    first = np.minimum(np.round(np.nan_to_num(start, nan=0.0) * fps), num_frames)
    last = np.where(np.isnan(end), num_frames, np.minimum(np.round(end * fps), num_frames))
    return first, np.maximum(last - first, 0)


class Entries(Sequence[Entry]):
    """Videos as columns (SCHEMA) of a table; an Entry is made when it is asked for.

    Args:
        table: the columns.
        root: what paths are relative to.
        classes: names of the classes.
        labels: the label of each number in the column `label`; None where it is the label.
        digest: hash of the columns.
        file: where the table lies, for other processes.
    """

    def __init__(
        self,
        table: pa.Table,
        root: Path,
        *,
        classes: Sequence[str] = (),
        labels: Sequence[int] | None = None,
        digest: str = "",
        file: Path | None = None,
    ) -> None:
        self.table = table
        self.root = root
        self.classes = tuple(classes)
        self.labels = labels
        self.digest = digest
        self.file = file

    @classmethod
    def of(cls, rows: Iterable[Entry], classes: Sequence[str] = ()) -> Entries:
        """A table of whole videos that are at hand one by one."""
        rows = list(rows)
        columns = {
            "path": [os.fsdecode(e.path) for e in rows],
            "name": [e.name for e in rows],
            "caption": [e.caption or None for e in rows],
            "label": [e.label for e in rows],
            "fraction": split_fractions([e.name for e in rows]),
        }
        empty = {name: [None] * len(rows) for name in SCHEMA.names if name not in columns}
        return cls(pa.table({**columns, **empty}, schema=SCHEMA), Path(), classes=classes)

    def take(self, rows: Sequence[int]) -> Entries:
        """Some of them."""
        table = self.table.take(pa.array(rows, pa.int64()))
        digest = sha256_json([self.digest, list(rows)])
        return Entries(table, self.root, classes=self.classes, labels=self.labels, digest=digest)

    def respelled(self, paths: Mapping[str, str]) -> Entries:
        """The same with other paths in the place of some. Names stay, and with them splits and fingerprints."""
        columns = {name: self.table.column(name) for name in SCHEMA.names}
        listed = columns["path"]
        index = pc.index_in(listed, value_set=pa.array(paths, pa.string()))
        other = pa.chunked_array(
            [pa.array(paths.values(), pa.string()).take(chunk) for chunk in index.chunks],
            pa.string(),
        )
        name = pc.coalesce(columns["name"], listed)
        columns["name"] = pc.if_else(pc.is_valid(other), name, columns["name"])
        columns["path"] = pc.coalesce(other, listed)
        table = pa.table(columns, schema=SCHEMA)
        return Entries(
            table, self.root, classes=self.classes, labels=self.labels, digest=self.digest
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, name, caption, label, start, end = (
            self.table.column(i)[index].as_py() for i in range(6)
        )
        if label is not None and self.labels is not None:
            label = self.labels[label]
        name = path if name is None else name
        return Entry(self.root / path, name, caption or "", label, start, end)

    def probe(self, index: int, found: Probe | None) -> Probe:
        """What a video is like: what the table says, else what was found by looking; a size that neither says is 0.

        Must not be called where nothing was found of a video that is not `stated`.
        """
        said = [self.table.column(i)[index].as_py() for i in range(6, 10)]
        if found is None:
            num_frames, fps, height, width = said
            return Probe(num_frames, fps, height or 0, width or 0)
        return found if said[1] is None else dataclasses.replace(found, fps=said[1])

    def stated(self) -> NDArray[np.bool_]:
        """Of which videos (N,) the table says frames and rate."""
        return ~(np.isnan(self.numbers("num_frames")) | np.isnan(self.numbers("fps")))

    def blocks(self, rows: NDArray[Any]) -> Iterator[tuple[pa.RecordBatch, slice]]:
        """Yield the table of some rows (N,), in ascending order, in pieces; and which of the N these are."""
        start = 0
        for batch in self.table.to_batches(max_chunksize=_BLOCK):
            first, last = np.searchsorted(rows, (start, start + len(batch))).tolist()
            if first < last:
                inside = rows[first:last].astype(np.int64) - start
                yield batch.take(pa.array(inside)), slice(first, last)
            start += len(batch)

    def names(self, rows: NDArray[Any]) -> Iterator[str]:
        """The names of some rows (N,), in ascending order."""
        for block, _ in self.blocks(rows):
            yield from names_of(block).to_pylist()

    def has(self, column: str) -> bool:
        """Whether any row has a value there."""
        return bool(self.table.column(column).null_count < len(self))

    def numbers(self, column: str) -> NDArray[Any]:
        """A column of numbers (N,), NaN where there is none."""
        return self.table.column(column).cast(pa.float64()).to_numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        table = self.table if self.file is None else None
        return _restored, (table, self.root, self.classes, self.labels, self.digest, self.file)


def _restored(
    table: pa.Table | None,
    root: Path,
    classes: tuple[str, ...],
    labels: Sequence[int] | None,
    digest: str,
    file: Path | None,
) -> Entries:
    """In another process: a file is mapped there too instead of being copied."""
    if table is None:
        assert file is not None
        table = map_table(file)
    return Entries(table, root, classes=classes, labels=labels, digest=digest, file=file)


def map_table(file: Path) -> pa.Table:
    """The table of an Arrow file, mapped into memory: processes share its pages, and what is not used is not read."""
    with pa.memory_map(os.fspath(file)) as mapped:
        return pa.ipc.open_file(mapped).read_all()
