"""Manifests as entries, read once for all processes.

The columns of a large manifest lie as an Arrow file in the cache folder, which every process maps into its memory.
The first one writes it while the others wait. A file is named by the manifest's path, size and times, so another
manifest has another file; deleting it is always safe.

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

from arvid.cache_dir import cache_dir
from arvid.data._columns import SCHEMA, Labels, LabelsError, Meanings
from arvid.data._entries import Entries, map_table
from arvid.data._tables import TableReader
from arvid.errors import UserError
from arvid.files import atomic_write, sha256_json, write_json

logger = logging.getLogger(__name__)

KEPT_FROM = 2**23
"""Bytes of a manifest from which on its columns are kept; a smaller one is read in a moment."""
_VERSION = 2


@dataclass(frozen=True)
class TableFile:
    """A manifest, or one of several."""

    path: Path
    folder: str = ""
    """In which its paths lie, with a slash behind it; "" is the root of the dataset."""

    def state(self) -> list[str | int]:
        """Tells it and its content from others without reading it. Raises OSError where it is absent."""
        stat = self.path.stat()
        where = [os.path.abspath(self.path), self.folder]
        return [*where, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@dataclass(frozen=True)
class _Summary:
    """What is known of a table once it has been read."""

    classes: tuple[str, ...]
    labels: list[int] | None
    digest: str
    unread: list[str]


def read_entries(
    tables: Sequence[TableFile], root: Path, columns: Mapping[str, str | None] | None = None
) -> Entries:
    """The entries of manifests, one after another. Columns of unknown meaning are named in the log.

    Args:
        tables: .csv, .tsv, .jsonl or .parquet.
        root: what paths are relative to.
        columns: meaning -> name of its column (see `Meanings`).

    Raises UserError for a manifest that cannot be read, with a bad line (named by its number), without any video, or
    with labels that are no classes.
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
        source = _Source(tables, columns)  # anew, should the other have read a part
        table, file = pa.Table.from_batches(source.blocks(), SCHEMA), None
        summary = source.summary()
    else:
        table, summary, file = kept
    if not len(table):
        raise UserError(f"The manifest {tables[0].path} lists no video.")
    if summary.unread:
        logger.warning(
            "%s: these columns are not read: %s. Name those that are wanted (columns: {caption: ...}).",
            tables[0].path,
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
    """Manifests that are read in one pass, and what that shows."""

    def __init__(
        self, tables: Sequence[TableFile], columns: Mapping[str, str | None] | None
    ) -> None:
        meanings, self._labels = Meanings(columns), Labels()
        self._where = str(tables[0].path)
        self._readers = [TableReader(t.path, meanings, self._labels, t.folder) for t in tables]
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
        """Once all blocks have been taken."""
        try:
            classes, labels = self._labels.classes()
        except LabelsError as error:
            raise UserError(f"{self._where}: {error}") from error
        unread = dict.fromkeys(name for reader in self._readers for name in reader.unread)
        return _Summary(classes, labels, self._digest.hexdigest(), list(unread))


def _kept(source: _Source, file: Path) -> tuple[pa.Table, _Summary, Path] | None:
    """The table of a file, which is written if it is not there; None where it cannot be."""
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
            "%s cannot be written (%s), so every process reads the manifest by itself. "
            "Set ARVID_CACHE to a folder that can be written.",
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
    write_json(note, asdict(source.summary()))


def _digest(block: pa.RecordBatch, digest: Any) -> None:
    """Add all that clips depend on to a hash. Of nulls only that they are there counts, not what lies under them."""
    names = pc.coalesce(block.column("name"), block.column("path"))
    for text in (names, pc.fill_null(block.column("caption"), "")):
        digest.update(pc.binary_length(text).to_numpy())
        _, offsets, data = text.buffers()
        ends = memoryview(offsets).cast("i")[text.offset : text.offset + len(text) + 1]
        digest.update(memoryview(data or b"")[ends[0] : ends[-1]])
    for name in ("label", "start", "end", "num_frames", "fps"):
        digest.update(pc.fill_null(block.column(name), -1).to_numpy())
