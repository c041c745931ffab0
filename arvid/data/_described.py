"""The text under a dataset's fingerprint: the JSON of [name, content, caption, label] of each video.

Python writes 30,000 such rows a second. Here Arrow joins the same text from columns, block by block. So datasets of
millions of rows keep the fingerprints of earlier versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from arvid.data._entries import Entries
from arvid.data._names import names_of
from arvid.data._videos import DistinctFiles

_COMMA = ", "
_TO_ESCAPE = r"[^ !#-\[\]-~]"
"""Characters that JSON escapes: quotes, backslashes, and all but printable ASCII."""


def sha256_with_files(values: Mapping[str, Any], files: Iterable[memoryview | bytes]) -> str:
    """`sha256_json` of `values` and one more key, "files": a list. The JSON of its items comes in pieces."""
    text = json.dumps({**values, "files": []}, sort_keys=True, default=str)
    # Finds the key alone: a quote inside of a string has a backslash before it.
    before, key, after = text.partition('"files": [')
    digest = hashlib.sha256(f"{before}{key}".encode())
    for piece in files:
        digest.update(piece)
    digest.update(after.encode())
    return digest.hexdigest()


def described(files: DistinctFiles, contents: Mapping[Path, str | int]) -> Iterator[memoryview]:
    """Yield the JSON of [name, content, caption, label] of the videos, comma-separated, in pieces.

    Args:
        files: the videos' rows in ascending order, and the file of each.
        contents: hash of each file's content, or its size.
    """
    of_file = pa.array([json.dumps(contents[entry.path]) for entry in files.entries])
    is_first = True
    for rows, positions in files.dataset.blocks(files.rows):
        content = of_file.take(pa.array(files.of_row[positions]))
        text = _rows(rows, content, files.dataset)
        # The strings of an Arrow column lie end to end in one buffer, so the piece is a slice of it.
        _, offsets, data = text.buffers()
        ends = memoryview(offsets).cast("i")
        start = ends[text.offset] + (len(_COMMA) if is_first else 0)
        yield memoryview(data)[start : ends[text.offset + len(text)]]
        is_first = False


def _rows(rows: pa.RecordBatch, content: pa.Array, dataset: Entries) -> pa.Array:
    """The JSON of each row, with a comma before it."""
    name = _quoted(names_of(rows))
    caption = _quoted(pc.fill_null(rows.column("caption"), ""))
    label = rows.column("label")
    if dataset.labels is not None:
        label = pa.array(dataset.labels, pa.int32()).take(label)
    label = pc.fill_null(label.cast(pa.string()), "null")
    comma, end = pa.scalar(_COMMA), pa.scalar("]")
    joined = pc.binary_join_element_wise(name, content, caption, label, comma)
    return pc.binary_join_element_wise(pa.scalar(f"{_COMMA}["), joined, end, "")


def _quoted(texts: pa.Array) -> pa.Array:
    """Texts as JSON."""
    quote = pa.scalar('"')
    plain = pc.binary_join_element_wise(quote, texts, quote, "")
    other = pc.match_substring_regex(texts, _TO_ESCAPE)
    if not pc.any(other).as_py():
        return plain
    escaped = [json.dumps(text) for text in texts.filter(other).to_pylist()]
    return pc.replace_with_mask(plain, other, pa.array(escaped, pa.string()))
