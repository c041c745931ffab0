"""Reading tables of videos block by block: .csv, .tsv, .jsonl and .parquet files into the columns of SCHEMA.

Arrow reads them. What it refuses, Python's own readers look at line by line: they name the line that is wrong, or
read it where Arrow is too strict (a label that is a name in one line and a number in the next).
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from arvid.data._columns import FAULTS, NO_PATH, TEXT, BadRow, Labels, Meanings, standard_block
from arvid.data._names import is_utf8
from arvid.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

_BLOCK = 2**24
"""Bytes of text that are read at once."""
_ROWS = 2**16
"""Rows that are read at once where they are no text."""
_LIMIT = 2**27
"""Characters that a value in a .csv may have: Python's own limit is 131,072."""
_NOTHING_NEW = ("", "Unnamed: 0", "__index_level_0__")
"""Columns that nobody needs to be told of: numbers of rows, which pandas writes."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Some rows of a table; of its columns those that are understood."""

    rows: pa.RecordBatch
    names: Sequence[str]
    """Of all columns."""
    line_of: Callable[[int], int]
    """Which line of the file a row is."""


class TableReader:
    """The blocks of a table as they are asked for.

    `unread` names the columns of which no meaning is known, once all blocks have been read.

    Args:
        path: the table.
        meanings: which columns hold what.
        labels: numbers of the labels so far; tables that are read one after another share it.
        folder: in which its paths lie, with a slash behind it.

    Raises UserError for another ending.
    """

    def __init__(self, path: Path, meanings: Meanings, labels: Labels, folder: str = "") -> None:
        readers = {
            ".csv": _csv_blocks,
            ".tsv": _csv_blocks,
            ".jsonl": _jsonl_blocks,
            ".parquet": _parquet_blocks,
        }
        if path.suffix.lower() not in readers:
            raise UserError(
                f"{path} is not a manifest: its name must end in .tsv, .parquet, .jsonl or .csv."
            )
        self.path = path
        self.unread: list[str] = []
        self._read = readers[path.suffix.lower()]
        self._meanings = meanings
        self._labels = labels
        self._folder = folder

    def blocks(self) -> Iterator[pa.RecordBatch]:
        """Yield blocks of SCHEMA. Raises UserError for a file that cannot be read, naming the line."""
        try:
            for block in _one_ahead(self._read(self.path, self._meanings)):
                columns = self._meanings.understood(block.names)
                self._note_unread(block.names, columns)
                try:
                    yield standard_block(block.rows, columns, self._labels, self._folder)
                except BadRow as error:
                    line = block.line_of(error.row)
                    raise bad_line(self.path, line, error.reason) from error
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise UserError(f"The manifest {self.path} cannot be read: {error}.") from error

    def _note_unread(self, names: Sequence[str], columns: Mapping[str, list[str]]) -> None:
        understood = {name for names in columns.values() for name in names}
        known = {*understood, *self.unread, *_NOTHING_NEW}
        self.unread += [name for name in names if name not in known]


def _one_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, each read while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def bad_line(path: Path, line: int, reason: str) -> UserError:
    """The error that names a line of a table and what is wrong with it."""
    return UserError(f"{path}, line {line}: {reason}.")


# --- .jsonl


def _jsonl_blocks(path: Path, meanings: Meanings) -> Iterator[Block]:
    line = 1
    with path.open("rb") as file:
        for text in _whole_lines(file):
            line_of = partial(_line_of_row, text, line)
            try:
                rows = _jsonl_rows(path, text, line, meanings)
            except BadRow as error:
                raise bad_line(path, line_of(error.row), error.reason) from error
            if not rows.num_columns and text.strip():
                raise bad_line(path, line_of(0), NO_PATH)
            if len(rows):
                yield Block(rows, rows.schema.names, line_of)
            line += text.count(b"\n")


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Pieces of a file of about _BLOCK bytes, cut behind an end of line."""
    begun = file.read(3).removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    while piece := file.read(_BLOCK):
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield begun + piece[:cut]
            begun = piece[cut:]
        else:
            begun += piece
    yield begun


def _line_of_row(text: bytes, first: int, row: int) -> int:
    """Which line a row is; empty ones are no rows."""
    lines = (i for i, line in enumerate(text.split(b"\n"), start=first) if line.strip())
    return next(islice(lines, row, None), first)


def _jsonl_rows(path: Path, text: bytes, line: int, meanings: Meanings) -> pa.RecordBatch:
    options = pa.json.ReadOptions(block_size=len(text) + 1)
    if b"{" not in text:  # Arrow crashes where all lines are "null"
        return _rows_as_columns(_json_objects(path, text, line), meanings)
    try:
        rows = _one_batch(pa.json.read_json(pa.BufferReader(text), read_options=options))
    except pa.ArrowInvalid:
        return _rows_as_columns(_json_objects(path, text, line), meanings)
    understood = [
        name for names in meanings.understood(rows.schema.names).values() for name in names
    ]
    if any(pa.types.is_temporal(rows.schema.field(name).type) for name in understood):
        # captions that are all dates, say, are text
        return _rows_as_columns(_json_objects(path, text, line), meanings)
    return rows


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def _json_objects(path: Path, text: bytes, first: int) -> Iterator[Row]:
    for line, content in enumerate(text.decode("utf-8").split("\n"), start=first):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise bad_line(path, line, f"this is not JSON ({error.msg})") from error
        except (ValueError, RecursionError) as error:
            raise bad_line(path, line, str(error)) from error
        if not isinstance(row, dict):
            raise bad_line(path, line, "expected an object in braces")
        yield row


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    """An object of JSON in which no key stands twice: Python's parser would take the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands there twice")
    return row


def _rows_as_columns(rows: Iterable[Row], meanings: Meanings) -> pa.RecordBatch:
    """Rows of values of any kind as columns; those that are not understood stay empty. Raises BadRow."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: pa.nulls(len(rows)) for name in names}
    for meaning, understood in meanings.understood(names).items():
        for name in understood:
            columns[name] = _column([row.get(name) for row in rows], meaning)
    return pa.RecordBatch.from_pydict(columns)


def _column(values: list[Any], meaning: str) -> pa.Array:
    values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        pass  # values of several kinds, or bad ones
    for row, value in enumerate(values):
        if isinstance(value, str) and not is_utf8(value):
            raise BadRow(row, f"{meaning} holds half of a character: {value!r}")
        if meaning in TEXT and not isinstance(value, TEXT[meaning]):
            raise BadRow(row, FAULTS[meaning](value))
    return pa.array([None if value is None else str(value) for value in values])


# --- .csv


def _csv_blocks(path: Path, meanings: Meanings) -> Iterator[Block]:
    header, delimiter = _csv_header(path)
    if [name.strip() for name in header] != header:
        yield from _csv_python_blocks(path, meanings, delimiter)
        return
    understood = [name for names in meanings.understood(header).values() for name in names]
    read = 0
    try:
        for rows in _csv_arrow_batches(path, understood or header, delimiter):
            yield Block(rows, header, partial(_csv_line, path, delimiter, read))
            read += len(rows)
    except pa.ArrowInvalid:
        _csv_line(path, delimiter, 0, sys.maxsize)  # names the line that is wrong
        raise


def _csv_arrow_batches(path: Path, names: list[str], delimiter: str) -> Iterator[pa.RecordBatch]:
    yield from pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=names,
            strings_can_be_null=False,
        ),
    )


def _csv_header(path: Path) -> tuple[list[str], str]:
    """Names of the columns as they stand there, and what is between them. Raises UserError where there are none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    if not first:
        raise UserError(f"The manifest {path} lists no video.")
    marks = "\t,;" if path.suffix.lower() == ".tsv" else ",\t;"
    delimiter = next((mark for mark in marks if mark in first), ",")
    line, header = next(_csv_python_rows(path, delimiter, strip=False))
    if len({name.strip() for name in header}) < len(header):
        raise bad_line(path, line, "a column's name stands there twice")
    return header, delimiter


def _csv_python_rows(path: Path, delimiter: str, *, strip: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the line at which it ends. Raises UserError for one that is no CSV.

    `strip` takes the spaces around values away, and reads quotes behind them as such.
    """
    csv.field_size_limit(_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=strip)
        width = 0
        try:
            for row in reader:
                if not row:
                    continue
                width = width or len(row)
                if len(row) != width:
                    raise bad_line(path, reader.line_num, f"expected {width} columns")
                yield reader.line_num, [v.strip() for v in row] if strip else row
        except csv.Error as error:
            raise bad_line(path, reader.line_num, f"this is not CSV ({error})") from error


def _line_among(rows: Sequence[tuple[int, list[str]]], row: int) -> int:
    return rows[row][0]


def _csv_line(path: Path, delimiter: str, before: int, row: int) -> int:
    """The line at which a row ends, of which there are some before in the file; where there are too few, the last one.

    Raises UserError for an earlier line that is wrong.
    """
    line = 0
    rows = _csv_python_rows(path, delimiter, strip=False)
    for number, (line, _) in enumerate(rows, start=-1):  # noqa: B007  # the columns' names are row -1
        if number == before + row:
            break
    return line


def _csv_python_blocks(path: Path, meanings: Meanings, delimiter: str) -> Iterator[Block]:
    """Where names have spaces around them, values have them too, before quotes as well, which Arrow does not take."""
    rows = _csv_python_rows(path, delimiter, strip=True)
    _, header = next(rows)
    while some := list(islice(rows, _ROWS)):
        columns = _rows_as_columns(
            (dict(zip(header, row, strict=True)) for _, row in some), meanings
        )
        yield Block(columns, header, partial(_line_among, some))


# --- .parquet


def _parquet_blocks(path: Path, meanings: Meanings) -> Iterator[Block]:
    with pa.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        understood = [n for names in meanings.understood(names).values() for n in names]
        read = 0
        for rows in file.iter_batches(_ROWS, columns=understood or names):
            yield Block(rows, names, partial(int.__add__, read + 1))
            read += len(rows)
