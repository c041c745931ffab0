"""Read manifests as entries, once for all processes.

The columns of a large manifest are kept as an Arrow file in the cache folder. The first process writes it while the
others wait; every process maps it into memory. Its name is a hash of the manifest's path, size and times, so a changed
manifest has another file. Deleting a file is always safe.

    CACHE/manifests/<key>.arrow   the columns of SCHEMA
    CACHE/manifests/<key>.json    written last: classes, unread columns, hash
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from arvid.data._columns import SCHEMA, Labels, LabelsError, Meanings
from arvid.data._entries import Entries, map_table
from arvid.data._tables import TableReader
from arvid.errors import UserError
from arvid.files import atomic_write, cache_dir, sha256_json, write_json

logger = logging.getLogger(__name__)

KEPT_FROM = 2**23
"""Smallest manifest, in bytes, whose columns are kept. Smaller ones are read each time."""
_VERSION = 2


@dataclass(frozen=True)
class TableFile:
    """A manifest, possibly one of several of a dataset."""

    path: Path
    folder: str = ""
    """Prefix of its relative paths, with a trailing slash; "" is the root of the dataset."""
    unpacked_from: Path | None = None
    """The archive whose samples it lists."""

    @property
    def where(self) -> Path:
        """The file that messages name."""
        return self.unpacked_from or self.path

    def state(self) -> list[str | int]:
        """Path, size and times, which identify the content without reading it. Raises OSError if it is absent."""
        stat = self.path.stat()
        where = [os.path.abspath(self.path), self.folder]
        return [*where, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@dataclass(frozen=True)
class _Summary:
    """Facts about a table that has been read. Written to its .json file."""

    classes: tuple[str, ...]
    labels: list[int] | None
    digest: str
    unread: list[str]


def read_entries(
    tables: Sequence[TableFile], root: Path, columns: Mapping[str, str | None] | None = None
) -> Entries:
    """The entries of manifests, in order. Columns without a known meaning are named in the log.

    Args:
        tables: .csv, .tsv, .jsonl or .parquet.
        root: folder that paths are relative to.
        columns: meaning -> name of its column (see `Meanings`).

    Raises UserError for an unreadable manifest, a bad line (with its number), a manifest without videos, and labels
    that cannot be classes.
    """
    source = _Source(tables, columns)
    try:
        states = [table.state() for table in tables]
    except OSError as error:
        raise UserError(f"The manifest {tables[0].path} cannot be read: {error}.") from error
    kept = None
    if sum(int(state[2]) for state in states) >= KEPT_FROM:
        key = sha256_json([_VERSION, states, dict(columns or {})])[:24]
        kept = _kept(source, cache_dir() / "manifests" / f"{key}.arrow")
    if kept is None:
        # A new source: writing may have failed halfway through the first.
        source = _Source(tables, columns)
        table, file = pa.Table.from_batches(source.blocks(), SCHEMA), None
        summary = source.summary()
    else:
        table, summary, file = kept
    if not len(table):
        raise UserError(f"The manifest {tables[0].where} lists no video.")
    if summary.unread:
        logger.warning(
            "%s: these columns are not read: %s. Name those that you need (columns: {caption: ...}).",
            tables[0].where,
            ", ".join(map(repr, summary.unread)),
        )
    return Entries(
        table,
        root,
        classes=summary.classes,
        labels=summary.labels,
        digest=summary.digest,
        file=file,
    )


class _Source:
    """Manifests read in one pass, with the summary of that pass."""

    def __init__(
        self, tables: Sequence[TableFile], columns: Mapping[str, str | None] | None
    ) -> None:
        meanings, self._labels = Meanings(columns), Labels()
        self._where = str(tables[0].where)
        self._readers = [
            TableReader(t.path, meanings, self._labels, folder=t.folder, where=t.where)
            for t in tables
        ]
        self._digest = hashlib.sha256()

    def blocks(self) -> Iterator[pa.RecordBatch]:
        try:
            for reader in self._readers:
                for block in reader.blocks():
                    _digest(block, self._digest)
                    yield block
        except LabelsError as error:
            raise UserError(f"{self._where}: {error}") from error

    def summary(self) -> _Summary:
        """Summary; call it after the last block."""
        try:
            classes, labels = self._labels.classes()
        except LabelsError as error:
            raise UserError(f"{self._where}: {error}") from error
        unread = dict.fromkeys(name for reader in self._readers for name in reader.unread)
        return _Summary(classes, labels, self._digest.hexdigest(), list(unread))


def _kept(source: _Source, file: Path) -> tuple[pa.Table, _Summary, Path] | None:
    """The table of a kept file, written first if it does not exist. None if it cannot be written."""
    note = file.with_suffix(".json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not note.is_file():
                _write(source, file, note)
        found = json.loads(note.read_text(encoding="utf-8"))
        summary = _Summary(**{**found, "classes": tuple(found["classes"])})
        return map_table(file), summary, file
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        logger.warning(
            "%s cannot be written (%s), so every process reads the manifest itself. "
            "Set ARVID_CACHE to a writable folder.",
            file,
            error,
        )
        return None


def _write(source: _Source, file: Path, note: Path) -> None:
    with (
        atomic_write(file) as temporary,
        pa.OSFile(os.fspath(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for block in source.blocks():
            writer.write_batch(block)
    write_json(note, asdict(source.summary()))  # last: it marks the table as complete


def _digest(block: pa.RecordBatch, digest: Any) -> None:
    """Add all columns that clips depend on to a hash. Nulls are filled, because the bytes under them are arbitrary."""
    names = pc.coalesce(block.column("name"), block.column("path"))
    for text in (names, pc.fill_null(block.column("caption"), "")):
        digest.update(pc.binary_length(text).to_numpy())  # so that "ab", "c" differs from "a", "bc"
        _, offsets, data = text.buffers()
        ends = memoryview(offsets).cast("i")[text.offset : text.offset + len(text) + 1]
        digest.update(memoryview(data or b"")[ends[0] : ends[-1]])
    for name in ("label", "start", "end", "num_frames", "fps"):
        digest.update(pc.fill_null(block.column(name), -1).to_numpy())
