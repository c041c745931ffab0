"""Read single clips of a token shard. Only the bytes of the requested clips are read, without a memory map.

A shard is a safetensors file (https://github.com/huggingface/safetensors#format): 8 bytes with the length of a JSON
header, the header, and the tensors. Each tensor has one row per clip, except `captions`. It is the UTF-8 text of all
captions, without separators. Row i of `caption_ends` is the position, in bytes, where caption i ends. Shards of older
formats have their captions in the header's metadata.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arvid.contracts import UserError
from arvid.data.collate import Example
from arvid.data.shard_files import (
    CAPTION_ENDS,
    CAPTIONS,
    Manifest,
    describe_invalid,
    first_invalid,
    naming,
    shard_name,
)
from arvid.sealed import Damaged, verify_tensors

_FIRST_READ = 4096
"""Bytes read first when a shard is opened. They contain the whole header, unless captions are in it."""
_NOT_CONDITIONS = ("tokens", "spread", CAPTIONS, CAPTION_ENDS)
_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


@dataclass(frozen=True)
class _Rows:
    """Where the rows of a tensor are in the file."""

    start: int
    """Position of the first row, in bytes."""
    count: int
    shape: tuple[int, ...]
    """Shape of a row."""
    dtype: np.dtype[Any]
    row_bytes: int


class Shard:
    """An open shard. Its file is closed when the object is deleted.

    Raises UserError if the file is not a shard, and FileNotFoundError if it is missing. `verify` checks its content.
    """

    def __init__(self, path: Path, manifest: Manifest, number: int) -> None:
        self.path = path
        self.manifest = manifest
        self.number = number
        with naming(path):
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._rows, self._metadata = self._read_header()
        self._conditions = sorted(name for name in self._rows if name not in _NOT_CONDITIONS)

    def _read_header(self) -> tuple[dict[str, _Rows], dict[str, str]]:
        """The tensors by name, and the metadata."""
        size = os.fstat(self._file).st_size
        content = os.pread(self._file, _FIRST_READ, 0)
        start = 8 + int.from_bytes(content[:8], "little")
        if not 8 < start <= size:
            raise Damaged("its header is cut off")
        if len(content) < start:
            content += self._read(len(content), start - len(content))
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__", {})
        if "tokens" not in header:
            raise Damaged("it has no tokens")
        ends = [start + entry["data_offsets"][1] for entry in header.values()]
        if max(ends) != size:
            raise Damaged(f"it has {size} bytes instead of {max(ends)}")
        return {name: _rows(entry, start) for name, entry in header.items()}, metadata

    def _read(self, start: int, length: int) -> bytes:
        content = b""
        while len(content) < length:  # one read gives at most 2 GiB, and may give less
            part = os.pread(self._file, length - len(content), start + len(content))
            if not part:
                raise Damaged("it is cut off")
            content = content + part if content else part
        return content

    def verify(self) -> None:
        """Check the content. Raises UserError if it is damaged, has invalid tokens or belongs elsewhere."""
        with naming(self.path):
            self._require_of_manifest()
            # The open file, not the path: another process may have deleted the copy in the cache.
            with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
                verify_tensors(content, required=self.manifest.sealed)
            self._require_rows()
            tokens = self._values(self._rows["tokens"], 0, self._rows["tokens"].count)
            row = first_invalid(tokens, self.manifest.spec)
            if row is not None:
                raise Damaged(f"its clip {row} has {describe_invalid(self.manifest.spec)}")

    def _require_of_manifest(self) -> None:
        expected, name = self._num_clips, self.manifest.name_of(self.number)
        found = self._rows["tokens"].count
        if found != expected:
            raise UserError(
                f"{self.path} belongs to another folder: it has {found} clips instead of {expected}."
            )
        if self._metadata.get("name", name) != name:  # older shards have no name
            raise UserError(
                f"{self.path} belongs to another folder, or is another shard of this one."
            )

    def _require_rows(self) -> None:
        """Raise Damaged if a tensor does not have one row per clip: a read past its end returns the next tensor."""
        for name, rows in self._rows.items():
            if name != CAPTIONS and rows.count != self._num_clips:
                raise Damaged(f"{name} has {rows.count} rows for {self._num_clips} clips")

    @property
    def _num_clips(self) -> int:
        return len(self.manifest.clips_of(self.number))

    def example(self, row: int) -> Example:
        """The example of a clip (see `TokenShards.example`)."""
        with naming(self.path):
            tokens = torch.from_numpy(self._row("tokens", row).copy())
            example = {
                "tokens": tokens if tokens.is_floating_point() else tokens.long(),
                "caption": self._caption(row),
                **{name: self._row(name, row)[()] for name in self._conditions},
            }
            if "spread" in self._rows:
                example["spread"] = torch.from_numpy(self._row("spread", row).copy()).float()
        return example

    def _row(self, name: str, row: int) -> NDArray[Any]:
        return self._values(self._rows[name], row)[0]

    def _values(self, rows: _Rows, first: int, count: int = 1) -> NDArray[Any]:
        """`count` rows of a tensor, starting at row `first`: (count, ...)."""
        content = self._read(rows.start + first * rows.row_bytes, count * rows.row_bytes)
        return np.frombuffer(content, rows.dtype).reshape(count, *rows.shape)

    def _caption(self, row: int) -> str:
        if CAPTIONS not in self._rows:
            return self._captions_of_header[row]
        ends = self._values(self._rows[CAPTION_ENDS], max(row - 1, 0), 2 if row else 1)
        start, end = (int(ends[0]) if row else 0), int(ends[-1])
        content = self._read(self._rows[CAPTIONS].start + start, end - start)
        return content.decode("utf-8", "surrogatepass")

    @cached_property
    def _captions_of_header(self) -> Sequence[str]:
        captions: list[str] = json.loads(self._metadata.pop("captions"))
        return captions


def _rows(entry: dict[str, Any], start: int) -> _Rows:
    """Rows of a tensor, from its entry in the header. `start` is the position of the first tensor."""
    begin, end = entry["data_offsets"]
    count, *shape = entry["shape"]
    dtype = np.dtype(_TYPES[entry["dtype"]])
    row_bytes = math.prod(shape) * dtype.itemsize
    if begin < 0 or end - begin != count * row_bytes:
        raise Damaged("the sizes in its header do not match")
    return _Rows(start + begin, count, tuple(shape), dtype, row_bytes)


def verify_shard(folder: Path, manifest: Manifest, shard: int) -> None:
    """Raise UserError if a shard is damaged."""
    Shard(folder / shard_name(shard), manifest, shard).verify()
