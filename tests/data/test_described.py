"""Fingerprints of many videos: the text that Arrow joins equals Python's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arvid.data import _entries
from arvid.data._columns import SCHEMA
from arvid.data._described import described, sha256_with_files
from arvid.data._entries import Entries
from arvid.data._videos import DistinctFiles
from arvid.files import sha256_json

NAMES = [
    "a.mp4",
    "f/b.c.avi",
    "no_ending",
    'q"uote.mp4',
    "back\\slash",
    "ä€😀.webm",
    "\x7f\t.ts",
    ".",
]
SECONDS = [
    0.0,
    -0.0,
    0.0005,
    0.0015,
    1.0,
    10.0,
    2.5,
    100.25,
    1.9999,
    59.9995,
    1e-9,
    4e9,
    1e300,
    7.0015,
]


def table(num: int, seed: int = 0) -> pa.Table:
    """Rows with every kind of name, part and label, some of them absent."""
    rng = np.random.default_rng(seed)

    def some(values: list[Any], share: float = 0.7) -> list[Any]:
        return [
            values[rng.integers(len(values))] if rng.random() < share else None for _ in range(num)
        ]

    columns = {
        "path": some(NAMES, share=1.0),
        "name": some(["other.mp4", "ünlike"], share=0.2),
        "caption": some(["", "a dog", 'say "hi"', "line\nbreak", "日本", "</>"]),
        "label": some([0, 1, 2]),
        "start": some([*SECONDS, *rng.uniform(0, 100, 50).tolist()], share=0.5),
        "end": some([*SECONDS, *rng.integers(0, 10**6, 50) / 10**4], share=0.5),
    }
    empty = {name: [None] * num for name in SCHEMA.names if name not in columns}
    return pa.table({**columns, **empty}, schema=SCHEMA)


@pytest.mark.parametrize("labels", [None, [2, 0, 1]])
@pytest.mark.parametrize("block", [7, 1000])
def test_the_text_is_pythons(
    monkeypatch: pytest.MonkeyPatch, labels: list[int] | None, block: int
) -> None:
    monkeypatch.setattr(_entries, "_BLOCK", block)
    parts = [table(150, seed) for seed in (0, 1)]
    entries = Entries(pa.concat_tables(parts), Path("root"), labels=labels)
    rows = np.flatnonzero(np.random.default_rng(2).random(len(entries)) < 0.6)
    chosen = [entries[row] for row in rows.tolist()]
    contents = {entry.path: f"content of {entry.path.name}" for entry in chosen}
    files = DistinctFiles(entries, rows)
    found = b"".join(described(files, contents)).decode()
    meant = [[e.name, contents[e.path], e.caption, e.label] for e in chosen]
    assert f"[{found}]" == json.dumps(meant)
    assert list(entries.names(rows)) == [e.name for e in chosen]
    values = {"version": 2, "classes": ('a "files": [', "b"), "clip": {"size": 64}}
    assert sha256_with_files(values, described(files, contents)) == sha256_json(
        {**values, "files": meant}
    )


def test_rows_of_one_kind() -> None:
    """For whole files, for files without labels, and for no files."""
    whole = table(20).drop_columns(["start", "end", "label"])
    columns = {name: pa.nulls(20, SCHEMA.field(name).type) for name in ("start", "end", "label")}
    for name, values in columns.items():
        whole = whole.append_column(name, values)
    entries = Entries(whole.select(SCHEMA.names), Path())
    sizes = {entry.path: 5 for entry in entries}
    files = DistinctFiles(entries, np.arange(20))
    meant = [[e.name, 5, e.caption, None] for e in entries]
    assert b"".join(described(files, sizes)).decode() == json.dumps(meant)[1:-1]
