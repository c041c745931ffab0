"""Convert other people's tables to arvid's columns (SCHEMA): find columns by name, and parse their values.

The known names are those of published datasets (Open-Sora, WebVid, Hugging Face, Kinetics, ...). They are compared
without case, and spaces and hyphens count as underscores.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arvid.errors import UserError

NAMES: dict[str, tuple[str, ...]] = {
    "path": (
        "path",
        "video",
        "file_name",
        "filename",
        "filepath",
        "file_path",
        "video_path",
        "video_file",
        "video_file_name",
        "video_name",
        "file",
    ),
    "caption": ("caption", "text", "prompt", "description", "sentence"),
    "label": ("label", "class", "class_name", "label_name"),
    "start": ("start", "start_time", "time_start", "start_sec"),
    "end": ("end", "end_time", "time_end", "end_sec"),
    "num_frames": ("num_frames", "frames", "frame_count", "n_frames"),
    "fps": ("fps", "frame_rate", "framerate"),
    "height": ("height",),
    "width": ("width",),
}
"""Meaning -> names of columns. If a row has values in several, the first of these names counts."""
WEBVID = ("page_dir", "videoid", "name")
"""Columns of WebVid's table. The path is <page_dir>/<videoid>.mp4, and the name is the caption."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("name", pa.string()),  # null: the same as the path
        ("caption", pa.string()),
        ("label", pa.int32()),  # class number; for names, their order of first appearance
        ("start", pa.float64()),  # seconds
        ("end", pa.float64()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fraction", pa.float64()),  # in [0, 1), decides the split: see `split_fraction`
    ]
)
_NAMED = 8  # columns listed in a message
MAX_CLASSES = 100_000
"""Limit of class numbers and of class names. Labels beyond it are ids, not classes."""

# Texts for an unknown value. As a label, "None" counts as the name of a class.
_NO_LABEL = pa.array(["", "nan", "NaN", "NAN", "<NA>"])
_NO_CAPTION = pa.array(
    [
        *("", "nan", "NaN", "NAN", "<NA>", "null", "NULL", "Null", "None", "none"),
        *("NA", "N/A", "n/a", "#N/A"),
    ]
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"\+?(\d+)(\.0*)?")
_CLOCK = re.compile(r"(\d+:)?\d+:\d+(\.\d*)?")
"""Minutes and seconds, or hours, minutes and seconds."""


NO_PATH = f"there is no path of a video (columns of this name: {', '.join(NAMES['path'])})"


def no_path(names: Iterable[str]) -> str:
    """Error text for a table with these columns, where no column holds paths."""
    read = ", ".join(map(repr, islice(names, _NAMED)))
    return (
        f"{NO_PATH}. The table has {read}. Rename the column, or name it (columns: {{path: ...}})"
    )


class BadRow(Exception):
    """A value that does not fit its column; `row` counts from 0 within the block."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason


class LabelsError(Exception):
    """Labels that cannot be classes."""


class Meanings:
    """The meaning of each column of a table.

    Args:
        given: meaning -> name of its column, if NAMES does not list that name. None: leave the column unread.

    Raises UserError for an unknown meaning.
    """

    def __init__(self, given: Mapping[str, str | None] | None = None) -> None:
        self.names = dict(NAMES)
        for meaning, column in (given or {}).items():
            if meaning not in NAMES:
                raise UserError(f"columns: {meaning!r} is none of {', '.join(NAMES)}.")
            self.names[meaning] = () if column is None else (_plain(column),)

    def by_meaning(self, columns: Iterable[str]) -> dict[str, list[str]]:
        """Meaning -> the table's columns of that meaning, in the order of NAMES."""
        by_name = {_plain(column): column for column in columns}
        found = {
            meaning: [by_name[name] for name in names if name in by_name]
            for meaning, names in self.names.items()
        }
        if not found["path"] and set(WEBVID) <= set(by_name):
            page, video, name = (by_name[x] for x in WEBVID)
            found["path"] = [page, video]
            found["caption"] = found["caption"] or [name]
        return {meaning: names for meaning, names in found.items() if names}

    def understood(self, columns: Iterable[str]) -> list[str]:
        """The columns of a table that have a meaning, each once."""
        found = self.by_meaning(columns).values()
        return list(dict.fromkeys(name for names in found for name in names))


def must_be_plain(column: str) -> bool:
    """Whether a list or an object in a column of this name is an error, instead of an unread value."""
    names = (NAMES[meaning] for meaning in ("caption", "label", "start", "end"))
    return any(_plain(column) in known for known in names)


def is_webvid(columns: Iterable[str]) -> bool:
    """Whether the path is made of WebVid's columns."""
    return [_plain(column) for column in columns] == list(WEBVID[:2])


def _plain(name: str) -> str:
    return re.sub(r"[ -]+", "_", name.strip().casefold())


class Labels:
    """Gives the labels of a table numbers, block after block."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        """Label that is a name -> its order of first appearance."""
        self._largest = -1
        """Largest label that is a number."""

    def encode(self, values: pa.Array) -> pa.Array:
        """Numbers of labels given as text (int32, null where unknown).

        Raises BadRow, and LabelsError for too many names.
        """
        # Each distinct text is parsed once.
        encoded = values.cast(pa.string()).dictionary_encode()
        codes = [self._code(text) for text in encoded.dictionary.to_pylist()]
        wrong = [i for i, code in enumerate(codes) if code is None]
        if wrong:
            row = int(pc.index(encoded.indices, wrong[0]).as_py())
            raise BadRow(row, _not_a_label(values[row].as_py()))
        return pa.array(codes, pa.int32()).take(encoded.indices)

    def _code(self, text: str) -> int | None:
        whole = _WHOLE.fullmatch(text)
        if whole and len(whole[1]) < 10 and int(whole[1]) < MAX_CLASSES:
            self._largest = max(self._largest, int(whole[1]))
            return int(whole[1])
        if _NUMBER.fullmatch(text):  # negative, fractional or too large
            return None
        if len(self._names) == MAX_CLASSES:
            raise LabelsError(
                f"there are more than {MAX_CLASSES} different labels, so they cannot be classes. "
                "Leave the column unread (columns: {label: null})."
            )
        return self._names.setdefault(text, len(self._names))

    def classes(self) -> tuple[tuple[str, ...], list[int] | None]:
        """Class names, and the label of each number that `encode` returned (None: the number itself).

        Names are sorted alphabetically, ignoring case. Raises LabelsError if some labels are names and others numbers.
        """
        if self._names and self._largest >= 0:
            raise LabelsError(
                f"labels are partly names ({min(self._names)!r}) and partly numbers (up to {self._largest}). "
                "Use one or the other."
            )
        if not self._names:
            return tuple(str(number) for number in range(self._largest + 1)), None
        classes = tuple(sorted(self._names, key=lambda name: (name.casefold(), name)))
        label_of = {name: label for label, name in enumerate(classes)}
        return classes, [label_of[name] for name in self._names]


def _label_text(values: pa.Array) -> pa.Array:
    """Labels as text, null where unknown. Raises BadRow."""
    return _null_for(_written(values), _NO_LABEL)


def _written(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        # pandas stores integers with gaps as floats.
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        is_whole = pc.equal(values, pc.floor(values))
        broken = pc.invert(pc.and_(is_whole, pc.less(pc.abs(values), 2.0**53)))
        if pc.any(broken).as_py():
            raise _first_bad(values, broken, _not_a_label)
        values = values.cast(pa.int64(), safe=False)
    if pa.types.is_boolean(values.type) and values.null_count < len(values):
        raise _first_bad(values, pc.is_valid(values), _not_a_label)
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    return pc.utf8_trim_whitespace(_text(values, _not_a_label))


def _not_a_label(value: Any) -> str:
    return (
        f"label must be a name or a whole number from 0 to {MAX_CLASSES - 1}, got {value!r}. "
        "Leave it empty if the class is unknown"
    )


def standard_block(
    block: pa.RecordBatch, columns: Mapping[str, list[str]], labels: Labels, folder: str = ""
) -> pa.RecordBatch:
    """Convert a block of a table to the columns of SCHEMA. Raises BadRow.

    Args:
        block: rows of the table.
        columns: meaning -> names of its columns, from `Meanings.by_meaning`.
        labels: label numbers of earlier blocks; new ones are added.
        folder: prefix of relative paths, with a trailing slash.
    """
    found = {meaning: [block.column(name) for name in names] for meaning, names in columns.items()}
    path = _paths(found.get("path", []), webvid=is_webvid(columns.get("path", ())))
    if path is None or path.null_count:
        row = 0 if path is None else int(pc.index(pc.is_null(path), True).as_py())
        raise BadRow(row, NO_PATH)
    path = _in_folder(path, folder)
    numbers = {
        field.name: _numbers(found.get(field.name, []), field.name, len(block)).cast(field.type)
        for field in SCHEMA
        if field.name in ("start", "end", "num_frames", "fps", "height", "width")
    }
    _check_sections(numbers["start"], numbers["end"])
    captions = [_text(values, _not_a_caption) for values in found.get("caption", [])]
    caption = _first_of([_null_for(values, _NO_CAPTION) for values in captions], len(block))
    label = labels.encode(_first_of([_label_text(v) for v in found.get("label", [])], len(block)))
    name = video_names(path)
    values = {
        **numbers,
        "path": path,
        "name": pc.if_else(pc.equal(name, path), pa.scalar(None, pa.string()), name),
        "caption": caption.cast(pa.string()),
        "label": label.cast(pa.int32()),
        "fraction": pa.array(split_fractions(name.to_pylist())),
    }
    return pa.RecordBatch.from_arrays([values[name] for name in SCHEMA.names], schema=SCHEMA)


def _paths(columns: list[pa.Array], *, webvid: bool) -> pa.Array | None:
    if not columns:
        return None
    if webvid:
        page, video = (
            values if pa.types.is_string(values.type) else values.cast(pa.string())
            for values in columns
        )
        return pc.binary_join_element_wise(
            pc.binary_join_element_wise(page, video, "/"), pa.scalar("mp4"), "."
        )
    texts = [_text(values, _not_a_path) for values in columns]
    texts = [pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text) for text in texts]
    path = _first_of(texts, len(columns[0]))
    # Windows writes paths with backslashes
    return pc.replace_substring(path, "\\", "/") if _any(path, "\\") else path


def _in_folder(paths: pa.Array, folder: str) -> pa.Array:
    if not folder:
        return paths
    inside = pc.binary_join_element_wise(pa.scalar(folder), paths, "")
    return pc.if_else(pc.starts_with(paths, "/"), paths, inside)


def _not_a_path(value: Any) -> str:
    if isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value):
        return "the videos lie inside of the table: read it as a Hugging Face dataset (huggingface_videos)"
    return f"the path of a video must be text, got {value!r}"


def _not_a_caption(value: Any) -> str:
    advice = ". Write a row for each caption" if isinstance(value, list) else ""
    return f"caption must be text, got {value!r}{advice}"


FAULTS: dict[str, Callable[[Any], str]] = {
    "path": _not_a_path,
    "caption": _not_a_caption,
    "label": _not_a_label,
}
"""Meaning -> what to say of a bad value."""
TEXT = {
    "path": (str, type(None)),
    "caption": (str, type(None)),
    "label": (str, int, float, type(None)),
}
"""Meaning -> types that are allowed in a column of mixed types."""


def _any(values: pa.Array, part: str) -> bool:
    return bool(pc.any(pc.match_substring(values, part)).as_py())


def video_names(paths: pa.Array) -> pa.Array:
    """Names of videos: the path, or the last two parts of an absolute one, so that moved files keep their names."""
    absolute = pc.starts_with(paths, "/")
    if not pc.any(absolute).as_py():
        return paths
    names = [
        "/".join(PurePosixPath(path).parts[-2:]) if path.startswith("/") else path
        for path in paths.to_pylist()
    ]
    return pa.array(names, pa.string())


def split_fraction(name: str) -> float:
    """A number in [0, 1) from a hash of the video's name, so it does not depend on other files.

    UCF-101 cuts several nearly equal clips (c01, c02, ...) out of one recording (g01). They get the same number.
    """
    return float(split_fractions([name])[0])


def split_fractions(names: list[str]) -> np.ndarray:
    """`split_fraction` of many: float64 (N,)."""
    recordings = [_CLIP.sub(r"\1", name) if "_g" in name else name for name in names]
    # The first 8 bytes of a digest are an integer below 2**64.
    digests = b"".join([hashlib.sha256(name.encode()).digest()[:8] for name in recordings])
    return np.frombuffer(digests, ">u8").astype(np.float64) / 2.0**64


_CLIP = re.compile(r"(_g\d+)_c\d+(\.\w+)?$")


def _text(values: pa.Array, fault: Callable[[Any], str]) -> pa.Array:
    """A column as text. Raises BadRow with `fault(value)` for values of another type."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_text(values.type):
        return values.cast(pa.string())
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return _decoded(values, fault)
    if pa.types.is_floating(values.type):  # pandas writes an empty column as NaN
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if values.null_count < len(values):
        raise _first_bad(values, pc.is_valid(values), fault)
    return pa.nulls(len(values), pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _decoded(values: pa.Array, fault: Callable[[Any], str]) -> pa.Array:
    """Text that a .parquet file stores as bytes. Raises BadRow for bytes that are not UTF-8."""
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        raise _first_bad(values, pc.is_valid(values), fault) from None


def _null_for(values: pa.Array, unknown: pa.Array) -> pa.Array:
    """Replace the texts that people and programs write for an unknown value by null."""
    is_unknown = pc.is_in(pc.utf8_trim_whitespace(values), value_set=unknown)
    return pc.if_else(is_unknown, pa.scalar(None, values.type), values)


def _first_of(columns: list[pa.Array], length: int) -> pa.Array:
    """The first value of each row that is not null."""
    return pc.coalesce(*columns) if columns else pa.nulls(length)


def _numbers(columns: list[pa.Array], meaning: str, length: int) -> pa.Array:
    """Numbers (float64), null where unknown. Text may be seconds, H:MM:SS or a fraction. Raises BadRow."""
    found = [_parsed(values, meaning) for values in columns if _may_be_numbers(values, meaning)]
    values = _first_of(found, length).cast(pa.float64())
    lowest = pc.greater_equal if meaning in ("start", "end") else pc.greater
    is_small = pc.less(values, _TOO_LARGE) if meaning in _WHOLE_NUMBERS else pc.is_finite(values)
    known = pc.and_(lowest(values, 0.0), is_small)
    # Published tables write 0, -1 or NaN for an unknown value.
    return pc.if_else(known, _rounded(values, meaning), pa.scalar(None, pa.float64()))


def _rounded(values: pa.Array, meaning: str) -> pa.Array:
    return pc.floor(values) if meaning in _WHOLE_NUMBERS else values


_WHOLE_NUMBERS = ("num_frames", "height", "width")
_TOO_LARGE = 2.0**31


def _may_be_numbers(values: pa.Array, meaning: str) -> bool:
    """Whether a column can hold numbers. Raises BadRow for `start` and `end`, which must not be ignored."""
    kind = values.type
    of_numbers = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
        *(pa.types.is_dictionary, pa.types.is_duration, pa.types.is_time, _is_text),
    )
    if any(is_of(kind) for is_of in of_numbers):
        return True
    if meaning in ("start", "end") and values.null_count < len(values):
        raise _first_bad(values, pc.is_valid(values), partial(_not_a_number, meaning))
    return False


def _not_a_number(meaning: str, value: Any) -> str:
    return f"{meaning} must be a number, got {value!r}"


def _parsed(values: pa.Array, meaning: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_duration(values.type) or pa.types.is_time(values.type):
        return _seconds(values)
    if not _is_text(values.type):
        return values.cast(pa.float64())
    values = values.cast(pa.string())
    values = _null_for(values, _NO_CAPTION)
    try:  # plain numbers; Python parses other forms
        return pc.utf8_trim_whitespace(values).cast(pa.float64())
    except pa.ArrowInvalid:
        parsed = [None if text is None else _number(text) for text in values.to_pylist()]
    for row, number in enumerate(parsed):
        if number is not None and math.isnan(number):
            raise BadRow(row, _not_a_number(meaning, values[row].as_py()))
    return pa.array(parsed, pa.float64())


def _seconds(values: pa.Array) -> pa.Array:
    """Durations or times of day in seconds."""
    of_kind = pa.duration if pa.types.is_duration(values.type) else pa.time64
    if pa.types.is_time32(values.type):
        values = values.cast(pa.time64("us"))
    nanoseconds = values.cast(of_kind("ns")).cast(pa.int64())
    return pc.divide(nanoseconds.cast(pa.float64()), 1e9)


def _number(text: str) -> float:
    """Parse "12.5", "0:00:12.5" or "30000/1001"; NaN for anything else, such as "0:00:12:05" with frames."""
    try:
        if "/" in text:
            top, bottom = text.split("/")
            return float(top) / float(bottom)
        if not _CLOCK.fullmatch(text.strip()):
            return float(text) if "_" not in text else math.nan
        seconds = 0.0
        for part in text.split(":"):  # hours, minutes, seconds
            seconds = 60 * seconds + float(part)
        return seconds
    except (ValueError, ZeroDivisionError):
        return math.nan


def _check_sections(start: pa.Array, end: pa.Array) -> None:
    """Raise BadRow for an end that does not lie after its start (0 if unknown)."""
    wrong = pc.fill_null(pc.less_equal(end, pc.fill_null(start, 0.0)), False)
    if pc.any(wrong).as_py():
        raise _first_bad(end, wrong, lambda value: f"end ({value}) must lie after start")


def _first_bad(values: pa.Array, wrong: pa.Array, fault: Callable[[Any], str]) -> BadRow:
    row = int(pc.index(wrong, True).as_py())
    return BadRow(row, fault(values[row].as_py()))
