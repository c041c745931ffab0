"""A list of videos with captions and labels: a .jsonl or .csv file that lies beside them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arvid.contracts import UserError
from arvid.data._files import Entry, FileDataset, FileOptions, Split
from arvid.data.clips import ClipSpec
from arvid.data.video import MAX_PIXELS

Row = dict[str, Any]


class VideoManifest(FileDataset):
    """Clips of the videos that a manifest lists; item i is a pure function of (seed, i).

    A .jsonl file holds one object a line, a .csv file has a first line with the names of its columns. Known names:
    `path` (or `video`), relative to the manifest; `caption`, text, may be absent; `label`, may be absent: a whole
    number from 0, or a name. Names are numbered in alphabetical order. Other names are ignored.

    Args:
        path: the manifest.
        clip: how clips are cut (17 frames of 64x64 by default).
        split: "train", "val" or "all"; decided by a hash of each video's path in the manifest.
        val_fraction: share of the videos that belong to "val".
        clips_per_video: clips cut from each video, evenly spread over it.
        seed: of the random windows.
        mirror: swap left and right in a random half of the clips. For training alone.
        motion: measure each clip's motion score.
        strict: broken or missing files are an error instead of being reported and skipped.
        max_pixels: files with larger frames count as broken. 8K by default.

    Raises:
        UserError: the manifest is missing, has another ending or a bad line (named by its number), or nothing of
            it is left to take.
    """

    def __init__(
        self,
        path: str | Path,
        clip: ClipSpec | None = None,
        *,
        split: Split = "all",
        val_fraction: float = 0.1,
        clips_per_video: int = 1,
        seed: int = 0,
        mirror: bool = False,
        motion: bool = False,
        strict: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        options = FileOptions(
            clip=clip or ClipSpec(),
            split=split,
            val_fraction=val_fraction,
            clips_per_video=clips_per_video,
            seed=seed,
            mirror=mirror,
            motion=motion,
            strict=strict,
            max_pixels=max_pixels,
        )
        entries, classes = read_manifest(Path(path))
        super().__init__(entries, options, where=str(path), classes=classes)


def read_manifest(path: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries of a manifest and the names of its classes (empty if it has no labels)."""
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is not a manifest: its name must end in .jsonl or .csv.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The manifest {path} cannot be read: {error}.") from error
    rows = list(readers[path.suffix.lower()](path, text))
    if not rows:
        raise UserError(f"The manifest {path} lists no video.")
    labels = [_label(path, line, row) for line, row in rows]
    classes = _classes(path, labels)
    names = {name: number for number, name in enumerate(classes)}
    entries = [
        _entry(path, line, row, names[label] if isinstance(label, str) else label)
        for (line, row), label in zip(rows, labels, strict=True)
    ]
    return entries, classes


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise _bad_line(path, line, f"this is not JSON ({error.msg})") from error
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, line, str(error)) from error
        if not isinstance(row, dict):
            raise _bad_line(path, line, "expected an object in braces")
        yield line, row


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    """An object of JSON in which no key stands twice: Python's parser would take the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands there twice")
    return row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise _bad_line(path, reader.line_num, "a column's name stands there twice")
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise _bad_line(path, reader.line_num, f"expected {columns} columns")
            yield reader.line_num, {name: value for name, value in row.items() if value != ""}
    except csv.Error as error:
        raise _bad_line(path, reader.line_num, f"this is not CSV ({error})") from error


def _entry(path: Path, line: int, row: Row, label: int | None) -> Entry:
    video, caption = row.get("path", row.get("video")), row.get("caption", "")
    if not isinstance(video, str) or not video:
        raise _bad_line(path, line, "there is no path of a video (key path or video)")
    if not isinstance(caption, str):
        raise _bad_line(path, line, f"caption must be text, got {caption!r}")
    name = video.replace("\\", "/")
    if Path(name).is_absolute():  # where the files lie must not reach the name
        name = "/".join(Path(name).parts[-2:])
    return Entry(path.parent / video, name, caption, label)


def _label(path: Path, line: int, row: Row) -> int | str | None:
    """The label of a row: a number, a name or None."""
    label = row.get("label")
    if isinstance(label, str):
        return int(label) if label.isdecimal() else label
    if label is None or (isinstance(label, int) and not isinstance(label, bool) and label >= 0):
        return label
    raise _bad_line(path, line, f"label must be a name or a whole number from 0, got {label!r}")


def _classes(path: Path, labels: list[int | str | None]) -> tuple[str, ...]:
    names = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    if names and numbers:
        raise UserError(
            f"{path}: labels are partly names ({min(names)!r}) and partly numbers ({min(numbers)}). "
            "Use one or the other."
        )
    if numbers:
        return tuple(str(number) for number in range(max(numbers) + 1))
    return tuple(sorted(names, key=lambda name: (name.casefold(), name)))


def _bad_line(path: Path, line: int, reason: str) -> UserError:
    return UserError(f"{path}, line {line}: {reason}.")
