"""Packs: a key-value store of many small values in few files. Any number of processes may append.

    FOLDER/00.pack    the values whose keys begin with the byte 00, one after another
    FOLDER/00.index   an entry (key, position, length, checksum) of 32 bytes for each value
    FOLDER/00.lock    held while a process appends

A value is appended before its entry, so a killed process leaves no entry without a value. A process keeps 12 bytes in
memory for each entry of the packs that it reads.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from arvid.sealed import Damaged

KEY_BYTES = 16
ENTRY = np.dtype(
    [("key", f"V{KEY_BYTES}"), ("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")]
)
_PREFIX = slice(1, 9)
"""The bytes of a key by which entries are sorted. The first byte is the same for all keys of a pack."""


class Packs:
    """The packs of a folder. The folder is created when the first value is written.

    Keys are `KEY_BYTES` long and evenly distributed, such as the beginning of a hash. Writing a key again replaces its
    value.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._indices: dict[int, _Index] = {}

    def read(self, key: bytes) -> bytes | None:
        """The value of a key, or None. Raises OSError, and Damaged if the stored value is damaged."""
        if key[0] not in self._indices:
            self._indices[key[0]] = _Index(self._path(key[0], "index"))
        index = self._indices[key[0]]
        try:
            return self._value(key, index.find(key))
        except Damaged:
            if not index.read_further():
                raise
            return self._value(key, index.find(key))  # perhaps it was written again

    def _value(self, key: bytes, entry: Any) -> bytes | None:
        if entry is None:
            return None
        path, start, length = self._path(key[0], "pack"), int(entry["start"]), int(entry["length"])
        with path.open("rb", buffering=0) as file:
            is_whole = start + length <= os.fstat(file.fileno()).st_size
            value = os.pread(file.fileno(), length, start) if is_whole else b""
        if not is_whole or _checksum(key, value) != entry["checksum"]:
            raise Damaged(f"{path} is damaged at byte {start}")
        return value

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Append values. Raises OSError."""
        packs: dict[int, list[bytes]] = defaultdict(list)
        for key in values:
            packs[key[0]].append(key)
        for pack, keys in packs.items():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path(pack, "lock")):
                self._append(pack, {key: values[key] for key in keys})

    def _append(self, pack: int, values: Mapping[bytes, bytes]) -> None:
        with self._path(pack, "pack").open("ab") as file:
            start = file.seek(0, os.SEEK_END)
            file.write(b"".join(values.values()))
        entries = np.empty(len(values), ENTRY)
        for entry, (key, value) in zip(entries, values.items(), strict=True):
            entry["key"] = np.void(key)
            entry["start"], entry["length"] = start, len(value)
            entry["checksum"] = _checksum(key, value)
            start += len(value)
        with self._path(pack, "index").open("ab") as file:
            # A killed process may have left a part of an entry.
            file.truncate(file.seek(0, os.SEEK_END) // ENTRY.itemsize * ENTRY.itemsize)
            file.write(entries.tobytes())

    def _path(self, pack: int, suffix: str) -> Path:
        return self.folder / f"{pack:02x}.{suffix}"


@dataclass
class _Index:
    """The entries of a pack: sorted prefixes of their keys, and the row of each entry in the file."""

    path: Path
    num_entries: int = 0
    prefixes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    rows: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))

    def find(self, key: bytes) -> Any:
        """The newest entry of a key, or None. Reads new entries if there is none yet."""
        entry = self._find(key)
        if entry is None and self.read_further():
            entry = self._find(key)
        return entry

    def _find(self, key: bytes) -> Any:
        prefix = _prefixes(np.frombuffer(key, f"V{KEY_BYTES}"))[0]
        first, last = (int(np.searchsorted(self.prefixes, prefix, side)) for side in _SIDES)
        for row in self.rows[first:last][::-1]:  # the newest first
            entries = self._entries(int(row), 1)
            if len(entries) and entries[0]["key"].tobytes() == key:
                return entries[0]
        return None

    def read_further(self) -> bool:
        """Read the entries that were written since the last call. Returns whether there are any."""
        try:
            total = self.path.stat().st_size // ENTRY.itemsize
        except FileNotFoundError:
            return False
        if total == self.num_entries:
            return False
        if total < self.num_entries:  # the folder was deleted and written anew
            self.num_entries, self.prefixes, self.rows = 0, self.prefixes[:0], self.rows[:0]
        new = _prefixes(self._entries(self.num_entries, total - self.num_entries)["key"])
        prefixes = np.concatenate([self.prefixes, new])
        rows = np.concatenate([self.rows, np.arange(self.num_entries, total, dtype=np.uint32)])
        order = np.argsort(prefixes, kind="stable")  # equal keys stay in the order of their rows
        self.prefixes, self.rows, self.num_entries = prefixes[order], rows[order], total
        return True

    def _entries(self, first: int, count: int) -> NDArray[Any]:
        return np.fromfile(self.path, ENTRY, count, offset=first * ENTRY.itemsize)


_SIDES: Any = ("left", "right")


def _prefixes(keys: NDArray[Any]) -> NDArray[np.uint64]:
    """The bytes `_PREFIX` of each key as integers (n,)."""
    parts = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)[:, _PREFIX]
    return np.ascontiguousarray(parts).view(np.uint64)[:, 0]


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))
