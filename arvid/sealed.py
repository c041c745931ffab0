"""Sealed files: each contains the SHA-256 of its own content, so damage is detected.

A sealed file contains `"checksum": "<64 hex digits>"` once: as the first key of a JSON file, or in the metadata of a
safetensors file. The digits are the SHA-256 of the whole file with zeros in place of the digits. So every changed bit
is detected, there is no second file to lose, and any reader of JSON or safetensors can read the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from pathlib import Path
from typing import Any

from arvid.files import atomic_write

KEY = "checksum"
BLANK = "0" * 64
"""Placeholder for the checksum while the checksum is computed."""

_SEAL = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')


class Damaged(ValueError):
    """A sealed file whose content has changed; the message gives the evidence."""


def seal(content: bytes, end: int | None = None) -> bytes:
    """Replace the placeholder, which must be before byte `end`, by the checksum of the content."""
    start, stop = _place(content, end)
    return content[:start] + _digest(content, start, stop).encode() + content[stop:]


def seal_tensors(content: bytes) -> bytes:
    """The content of a safetensors file with its checksum in the metadata, and with sorted metadata.

    The library writes metadata in arbitrary order, so files of equal tensors would differ without sorting.
    """
    end = _header_end(content)
    header = json.loads(content[8:end])
    metadata = dict(sorted(header.pop("__metadata__", {}).items()))
    header = {"__metadata__": {KEY: BLANK, **metadata}, **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors after the header aligned to 8 bytes
    return seal(len(text).to_bytes(8, "little") + text + content[end:], 8 + len(text))


def verify(content: bytes | mmap.mmap, end: int | None = None) -> None:
    """Raise Damaged if the content is not what `seal` returned. The checksum must be before byte `end`."""
    start, stop = _place(content, end)
    if content[start:stop] != _digest(content, start, stop).encode():
        raise Damaged("its checksum does not match its content")


def verify_tensors(content: bytes | mmap.mmap, *, required: bool = True) -> None:
    """Raise Damaged if the content of a safetensors file is not what `seal_tensors` returned.

    A file without a checksum counts as damaged if `required`, otherwise as valid.
    """
    end = _header_end(content)
    if required or _SEAL.search(content, 0, min(end, len(content))):
        verify(content, end)


def verify_tensor_file(path: Path, *, required: bool = True) -> None:
    """`verify_tensors` for a file, which is memory-mapped."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        verify_tensors(content, required=required)


def _header_end(content: bytes | mmap.mmap) -> int:
    """End, in bytes, of a safetensors header, which holds the metadata. The first 8 bytes are the header's length."""
    return 8 + int.from_bytes(content[:8], "little")


def write_sealed_json(path: str | Path, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON with its checksum, atomically. NaN and infinity are refused (ValueError)."""
    text = json.dumps({KEY: BLANK, **value}, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_bytes(seal(text.encode()))


def _place(content: bytes | mmap.mmap, end: int | None) -> tuple[int, int]:
    """Start and end of the checksum's digits. Raises Damaged if there is no checksum."""
    found = _SEAL.search(content, 0, len(content) if end is None else min(end, len(content)))
    if found is None:
        raise Damaged("it has lost its checksum")
    return found.span(1)


def _digest(content: bytes | mmap.mmap, start: int, stop: int) -> str:
    with memoryview(content) as view, view[:start] as before, view[stop:] as behind:
        digest = hashlib.sha256(before)
        digest.update(BLANK.encode())
        digest.update(behind)
    return digest.hexdigest()
