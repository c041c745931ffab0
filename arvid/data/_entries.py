"""The videos of a dataset as columns of an Arrow table, without a Python object for each video."""

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
"""Rows per block."""


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
        """The file's name, with the seconds of a part: 2 to 4.5 of "a.mp4" is "a@2-4.5.mp4"."""
        if self.start is None and self.end is None:
            return self.file_name
        return section_name(self.file_name, self.start, self.end)

    def section(self, probe: Probe) -> tuple[int, int]:
        """First frame and number of frames of the part, in a video with this probe."""
        if probe.times is not None:
            times = probe.times - probe.times[0]
            ends = (
                0.0 if self.start is None else self.start,
                np.inf if self.end is None else self.end,
            )
            # Times ascend, so a part is a range of frames.
            first, last = np.searchsorted(times, ends).tolist()
            return first, max(last - first, 0)
        start = np.nan if self.start is None else self.start
        end = np.nan if self.end is None else self.end
        first, count = sections(start, end, probe.num_frames, probe.fps)
        return int(first), int(count)


def sections(start: Any, end: Any, num_frames: Any, fps: Any) -> tuple[Any, Any]:
    """First frames (N,) and frame counts (N,) of parts given in seconds; NaN is an open end."""
    first = np.minimum(np.round(np.nan_to_num(start, nan=0.0) * fps), num_frames)
    last = np.where(np.isnan(end), num_frames, np.minimum(np.round(end * fps), num_frames))
    return first, np.maximum(last - first, 0)


class Entries(Sequence[Entry]):
    """Videos as columns (SCHEMA) of a table. Indexing makes an Entry.

    Args:
        table: the columns.
        root: folder that paths are relative to.
        classes: names of the classes.
        labels: maps numbers in the column `label` to labels. None: the numbers are the labels.
        digest: hash of the columns.
        file: Arrow file of the table, which other processes map instead of copying it.
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
        """Make a table of whole videos (no parts) from entries."""
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
        """The entries at these rows."""
        table = self.table.take(pa.array(rows, pa.int64()))
        digest = sha256_json([self.digest, list(rows)])
        return Entries(table, self.root, classes=self.classes, labels=self.labels, digest=digest)

    def respelled(self, paths: Mapping[str, str]) -> Entries:
        """The same entries with some paths replaced. Names stay the same, and so do splits and fingerprints."""
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
        # The order of the columns is that of SCHEMA.
        path, name, caption, label, start, end = (
            self.table.column(i)[index].as_py() for i in range(6)
        )
        if label is not None and self.labels is not None:
            label = self.labels[label]
        name = path if name is None else name
        return Entry(self.root / path, name, caption or "", label, start, end)

    def probe(self, index: int, found: Probe | None) -> Probe:
        """Probe of a video: `found` with the table's rate, if it states one. Without `found`, the table's values.

        `found` may be None only for a video that is `stated`. An unknown size is 0.
        """
        # Columns 6 to 9 of SCHEMA: num_frames, fps, height, width.
        stated = [self.table.column(i)[index].as_py() for i in range(6, 10)]
        if found is None:
            num_frames, fps, height, width = stated
            return Probe(num_frames, fps, height or 0, width or 0)
        return found if stated[1] is None else dataclasses.replace(found, fps=stated[1])

    def stated(self) -> NDArray[np.bool_]:
        """For each video (N,), whether the table states its frame count and rate."""
        return ~(np.isnan(self.numbers("num_frames")) | np.isnan(self.numbers("fps")))

    def blocks(self, rows: NDArray[Any]) -> Iterator[tuple[pa.RecordBatch, slice]]:
        """Yield ascending rows (N,) of the table in blocks, each with its slice of the N."""
        start = 0
        for batch in self.table.to_batches(max_chunksize=_BLOCK):
            # Rows ascend, so those of this batch are a slice.
            first, last = np.searchsorted(rows, (start, start + len(batch))).tolist()
            if first < last:
                inside = rows[first:last].astype(np.int64) - start
                yield batch.take(pa.array(inside)), slice(first, last)
            start += len(batch)

    def names(self, rows: NDArray[Any]) -> Iterator[str]:
        """The names of ascending rows (N,)."""
        for block, _ in self.blocks(rows):
            yield from names_of(block).to_pylist()

    def has(self, column: str, rows: NDArray[Any] | None = None) -> bool:
        """Whether any of some rows (N,) has a value in a column; of all rows by default."""
        if rows is None or self.table.column(column).null_count in (0, len(self)):
            return bool(self.table.column(column).null_count < len(self))
        return bool(self.table.column(column).is_valid().to_numpy()[rows].any())

    def numbers(self, column: str) -> NDArray[Any]:
        """A numeric column (N,), NaN where unknown."""
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
    """Unpickle entries in another process; a table in a file is mapped, not copied."""
    if table is None:
        assert file is not None
        table = map_table(file)
    return Entries(table, root, classes=classes, labels=labels, digest=digest, file=file)


def map_table(file: Path) -> pa.Table:
    """The table of an Arrow file, mapped into memory. Processes share its pages; unused pages are not read."""
    with pa.memory_map(os.fspath(file)) as mapped:
        return pa.ipc.open_file(mapped).read_all()
