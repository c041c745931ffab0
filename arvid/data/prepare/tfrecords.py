"""Read TensorFlow's record files, and the byte strings in their examples, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of the length (4 bytes), the data, and a checksum of the
data (4 bytes). The data is a protocol buffer, tf.train.Example or SequenceExample. In both, field 1 is a map of names
to values, and only this map is read. The checksums (CRC-32C) are not verified, because Python has no CRC-32C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

MAX_BYTES = 2**28
"""Largest length of a record. A larger one means that the file is no record file."""


class RecordError(Exception):
    """A file that is damaged or holds no records."""


def read_records(file: IO[bytes]) -> Iterator[memoryview]:
    """Yield the data of each record. Raises RecordError."""
    while header := file.read(12):
        if len(header) < 12:
            raise RecordError("it ends within a record")
        (length,) = struct.unpack("<Q", header[:8])
        if length > MAX_BYTES:
            raise RecordError("it is damaged, or no TensorFlow record file")
        data = file.read(length + 4)
        if len(data) < length + 4:
            raise RecordError("it ends within a record")
        yield memoryview(data)[:length]


def bytes_features(record: memoryview) -> dict[str, memoryview]:
    """Name -> value of the byte-string features of a record. Raises RecordError."""
    found = {}
    for entry in _each(_first(record, 1), 1):
        key, feature = _first(entry, 1), _first(entry, 2)
        for values in _each(feature, 1):  # 1 is a list of bytes; 2 and 3 are lists of numbers
            for value in _each(values, 1):
                found[str(key, "utf-8", "replace")] = value
    return found


def _first(message: memoryview, field: int) -> memoryview:
    return next(_each(message, field), memoryview(b""))


def _each(message: memoryview, field: int) -> Iterator[memoryview]:
    """Values of a field of a protocol buffer, given by its number: those of wire type 2 (strings, bytes, messages)."""
    at = 0
    while at < len(message):
        # A tag is the field number and, in its lowest 3 bits, the wire type.
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == 2:  # length and bytes
            length, at = _varint(message, at)
            if at + length > len(message):
                raise RecordError("a field is longer than its record")
            if tag >> 3 == field:
                yield message[at : at + length]
            at += length
        elif wire_type == 0:
            _, at = _varint(message, at)
        elif wire_type in (1, 5):  # fixed 64 or 32 bits
            at += 8 if wire_type == 1 else 4
        else:
            raise RecordError("it holds no protocol buffers")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a varint: 7 bits per byte, lowest first; the top bit says that more follow. Returns it and its end."""
    number = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise RecordError("a number has no end")
