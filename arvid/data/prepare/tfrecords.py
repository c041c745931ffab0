"""TensorFlow's record files, and the bytes in their examples, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of that (4 bytes), the data, and a checksum of the data
(4 bytes). The data is a protocol buffer, tf.train.Example or SequenceExample: what is wanted of both lies in field 1,
a map of names to values. The checksums (CRC-32C, which Python does not have) are not computed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

MAX_BYTES = 2**28
"""Of a record. Other files than record files promise more."""


class RecordError(Exception):
    """A file that is damaged or holds no records."""


def read_records(file: IO[bytes]) -> Iterator[memoryview]:
    """Yield the data of each record. Raises RecordError."""
    while header := file.read(12):
        if len(header) < 12:
            raise RecordError("it ends within a record")
        (length,) = struct.unpack("<Q", header[:8])
        if length > MAX_BYTES:
            raise RecordError("it is damaged, or no record file of TensorFlow's")
        data = file.read(length + 4)
        if len(data) < length + 4:
            raise RecordError("it ends within a record")
        yield memoryview(data)[:length]


def bytes_features(record: memoryview) -> dict[str, memoryview]:
    """Name -> value of the features of a record that are a string of bytes. Raises RecordError."""
    found = {}
    for entry in _each(_first(record, 1), 1):
        key, feature = _first(entry, 1), _first(entry, 2)
        for values in _each(feature, 1):  # 1 is a list of bytes; 2 and 3 are lists of numbers
            for value in _each(values, 1):
                found[str(key, "utf-8", "replace")] = value
    return found


def _first(message: memoryview, number: int) -> memoryview:
    return next(_each(message, number), memoryview(b""))


def _each(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of a message's field of a number, those that have a length (strings, bytes, messages)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise RecordError("a field is longer than its record")
            if tag >> 3 == wanted:
                yield message[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise RecordError("it holds no protocol buffers")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise RecordError("a number has no end")
