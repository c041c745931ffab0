"""Read tables of videos block by block: .csv, .tsv, .jsonl and .parquet files into the columns of SCHEMA.

Arrow reads them. A block that Arrow refuses is read again line by line in Python. That names the bad line, or reads it
if Arrow is too strict (a label that is a name in one line and a number in the next).
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

from arvid.data._columns import (
    FAULTS,
    NO_PATH,
    TEXT,
    BadRow,
    Labels,
    Meanings,
    no_path,
    standard_block,
)
from arvid.data._names import is_utf8
from arvid.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

_BLOCK = 2**24
"""Bytes of text per block."""
_ROWS = 2**16
"""Rows per block of a .parquet file."""
_LIMIT = 2**27
"""Longest value in a .csv file, in characters. Python's default is 131,072."""
_ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")
"""Names that pandas gives to its row numbers. They are not reported as unread."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Some rows of a table."""

    rows: pa.RecordBatch
    """At least the columns of known meaning."""
    names: Sequence[str]
    """Names of all columns."""
    line_of: Callable[[int], int]
    """Row of the block -> line of the file."""


class TableReader:
    """Reads the blocks of a table on demand.

    After the last block `unread` holds the names of the columns without a known meaning.

    Args:
        path: the table.
        meanings: meaning of each column.
        labels: label numbers; tables of one dataset share them.
        folder: prefix of relative paths, with a trailing slash.
        where: the file that errors about values name; the table itself by default.

    Raises UserError for a file name with another ending.
    """

    def __init__(
        self,
        path: Path,
        meanings: Meanings,
        labels: Labels,
        *,
        folder: str = "",
        where: Path | None = None,
    ) -> None:
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
        self._where = where or path

    def blocks(self) -> Iterator[pa.RecordBatch]:
        """Yield blocks with the columns of SCHEMA. Raises UserError for an unreadable file, with the bad line."""
        try:
            for block in _one_ahead(self._read(self.path, self._meanings)):
                columns = self._meanings.by_meaning(block.names)
                self._note_unread(block.names, columns)
                if "path" not in columns:
                    raise bad_line(self.path, block.line_of(0), no_path(block.names))
                try:
                    yield standard_block(block.rows, columns, self._labels, self._folder)
                except BadRow as error:
                    line = block.line_of(error.row)
                    raise bad_line(self._where, line, error.reason) from error
        except UnicodeError as error:
            raise UserError(
                f"The manifest {self.path} cannot be read: it is not UTF-8 ({error}). Save it as UTF-8."
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"The manifest {self.path} cannot be read: {error}.") from error

    def _note_unread(self, names: Sequence[str], columns: Mapping[str, list[str]]) -> None:
        understood = {name for names in columns.values() for name in names}
        known = {*understood, *self.unread, *_ROW_NUMBERS}
        self.unread += [name for name in names if name not in known]


def _one_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks, and read the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def bad_line(path: Path, line: int, reason: str) -> UserError:
    """The error for a bad line of a table."""
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
    """Pieces of a file of about _BLOCK bytes, each up to the end of a line."""
    rest = file.read(3).removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    while piece := file.read(_BLOCK):
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield rest + piece[:cut]
            rest = piece[cut:]
        else:
            rest += piece
    yield rest


def _line_of_row(text: bytes, first: int, row: int) -> int:
    """Line number of a row. Empty lines hold no row."""
    lines = (i for i, line in enumerate(text.split(b"\n"), start=first) if line.strip())
    return next(islice(lines, row, None), first)


def _jsonl_rows(path: Path, text: bytes, line: int, meanings: Meanings) -> pa.RecordBatch:
    # Arrow infers types per block, so the piece must be one block.
    options = pa.json.ReadOptions(block_size=len(text) + 1)
    if b"{" not in text:  # Arrow crashes where all lines are "null"
        return _rows_as_columns(_json_objects(path, text, line), meanings)
    try:
        rows = _one_batch(pa.json.read_json(pa.BufferReader(text), read_options=options))
    except pa.ArrowInvalid:
        return _rows_as_columns(_json_objects(path, text, line), meanings)
    understood = meanings.understood(rows.schema.names)
    if any(pa.types.is_temporal(rows.schema.field(name).type) for name in understood):
        # Arrow takes a column of dates for timestamps; as captions they are text.
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
    """A JSON object. Raises ValueError for a repeated key, of which Python's parser would keep the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is repeated")
    return row


def _rows_as_columns(rows: Iterable[Row], meanings: Meanings) -> pa.RecordBatch:
    """Columns of rows with values of any type. Columns without a known meaning stay empty. Raises BadRow."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: pa.nulls(len(rows)) for name in names}
    for meaning, understood in meanings.by_meaning(names).items():
        for name in understood:
            columns[name] = _column([row.get(name) for row in rows], meaning)
    return pa.RecordBatch.from_pydict(columns)


def _column(values: list[Any], meaning: str) -> pa.Array:
    values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        pass  # mixed types, or a bad value
    for row, value in enumerate(values):
        if isinstance(value, str) and not is_utf8(value):
            raise BadRow(row, f"{meaning} holds half of a character: {value!r}")
        if meaning in TEXT and not isinstance(value, TEXT[meaning]):
            raise BadRow(row, FAULTS[meaning](value))
    return pa.array([None if value is None else str(value) for value in values])


# --- .csv


def _csv_blocks(path: Path, meanings: Meanings) -> Iterator[Block]:
    header, delimiter = _csv_header(path, meanings)
    if [name.strip() for name in header] != header:
        yield from _csv_python_blocks(path, meanings, delimiter)
        return
    understood = meanings.understood(header)
    read = 0
    try:
        for rows in _csv_arrow_batches(path, understood or header, delimiter):
            yield Block(rows, header, partial(_csv_line, path, delimiter, read))
            read += len(rows)
        # Arrow reads everything after an open quote as one value.
        if _has_odd_quotes(path):
            _csv_line(path, delimiter, 0, sys.maxsize)
    except pa.ArrowInvalid:
        _csv_line(path, delimiter, 0, sys.maxsize)  # raises for the bad line
        raise


def _has_odd_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return sum(piece.count(b'"') for piece in iter(partial(file.read, _BLOCK), b"")) % 2 == 1


def _csv_arrow_batches(path: Path, names: list[str], delimiter: str) -> Iterator[pa.RecordBatch]:
    yield from pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            # All as text: an inferred type could change from block to block.
            column_types={name: pa.string() for name in names},
            include_columns=names,
            strings_can_be_null=False,
        ),
    )


def _csv_header(path: Path, meanings: Meanings) -> tuple[list[str], str]:
    """Names of the columns, spaces included, and the delimiter. Raises UserError for an empty file.

    The delimiter is the first mark with which a column is the path. If there is none: the first mark in the line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    if not first:
        raise UserError(f"The manifest {path} lists no video.")
    if "\0" in first:
        raise bad_line(path, 1, "it contains zero bytes, so it is not UTF-8 text. Save it as UTF-8")
    marks = "\t,;" if path.suffix.lower() == ".tsv" else ",\t;"
    there = [mark for mark in marks if mark in first] or [","]
    csv.field_size_limit(_LIMIT)
    headers = [(mark, next(csv.reader([first], delimiter=mark))) for mark in there]
    with_path = (mark for mark, names in headers if "path" in meanings.by_meaning(names))
    delimiter = next(with_path, there[0])
    line, header = next(_csv_python_rows(path, delimiter, strip=False))
    named = [name.strip() for name in header if name.strip()]  # Excel writes columns without a name
    if len(set(named)) < len(named):
        raise bad_line(path, line, "the name of a column is repeated")
    return header, delimiter


def _csv_python_rows(path: Path, delimiter: str, *, strip: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with its last line. Raises UserError for a row that is no CSV.

    `strip` removes the spaces around values, also before a quote.
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
    """The last line of a row of a block, after `before` rows of earlier blocks; the last line of the file at most.

    Raises UserError for a bad line on the way.
    """
    line = 0
    rows = _csv_python_rows(path, delimiter, strip=False)
    for number, (line, _) in enumerate(rows, start=-1):  # noqa: B007  # the columns' names are row -1
        if number == before + row:
            break
    return line


def _csv_python_blocks(path: Path, meanings: Meanings, delimiter: str) -> Iterator[Block]:
    """Blocks of a file with spaces around its values. Arrow does not read quotes after a space."""
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
        understood = meanings.understood(names)
        if repeated := [name for name in understood if names.count(name) > 1]:
            raise UserError(f"{path}: the column {repeated[0]!r} is repeated.")
        read = 0
        for rows in file.iter_batches(_ROWS, columns=understood or names):
            yield Block(rows, names, partial(int.__add__, read + 1))
            read += len(rows)
