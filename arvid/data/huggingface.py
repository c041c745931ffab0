"""Video datasets of the Hugging Face hub, downloaded into a folder."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from arvid.data._columns import Meanings
from arvid.data._files import FileDataset, FileOptions
from arvid.data._kept_tables import TableFile, read_entries
from arvid.data._unpacked import Sample, unpack
from arvid.data._walk import LeftOut, contents
from arvid.data.clips import ClipSpec
from arvid.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
VIDEO_COLUMNS = ("video", "videos", "mp4", "webm", "avi", "mkv", "mov", "gif")
"""Names of columns that contain videos: those of the datasets library, and the endings of WebDataset's files."""


class HuggingFaceVideos(FileDataset):
    """Clips of a dataset of the Hugging Face hub; item i is a pure function of (seed, i).

    The folder (`hf download --repo-type dataset NAME --local-dir FOLDER`) holds metadata.jsonl, .csv or .parquet files,
    whose `file_name` is relative to their own folder. Or it holds other .parquet files, which list videos or contain
    them. Contained videos are unpacked once into the cache folder. Columns are those of a manifest (see
    `arvid.data.manifest.VideoManifest`).

    Args:
        path: the folder.
        clip: how clips are cut (17 frames of 64x64 by default).
        part: one of the dataset's own splits, e.g. "train": files and folders of that name. All by default.
        columns: columns with other names, as meaning: column, e.g. {caption: title}. Null: do not read one.
        options: see `arvid.data._files.FileOptions`.

    Raises:
        UserError: the folder holds no table of videos, a table has a bad line, or no video is left.
    """

    def __init__(
        self,
        path: str | Path,
        clip: ClipSpec | None = None,
        *,
        part: str = "",
        columns: dict[str, str | None] | None = None,
        **options: Any,
    ) -> None:
        common = FileOptions(clip=clip or ClipSpec(), **options)
        entries = read_entries(find_tables(Path(path), part), Path(path), columns)
        super().__init__(entries, common, where=str(path), classes=entries.classes)


def find_tables(root: Path, part: str = "") -> list[TableFile]:
    """The tables of a dataset. Tables that contain videos are unpacked. Raises UserError if there is none."""
    below = contents(root, LeftOut()) if os.path.isdir(root) else ()
    files = sorted(path for content in below for path in content.others)
    paths = [p for p in files if not part or _is_of_part(p.relative_to(root), part)]
    metadata = [p for p in paths if p.name.lower() in METADATA]
    tables = metadata or [p for p in paths if p.suffix.lower() == ".parquet"]
    if not tables:
        of_part = f" of the part {part!r}" if part else ""
        raise UserError(
            f"{root}: there is no metadata.jsonl, metadata.csv or .parquet file{of_part}. For a folder with one "
            "folder per class use video_folder."
        )
    inside = {p for p in tables if p.suffix.lower() == ".parquet" and _video_column(p)}
    unpacked = dict(zip(sorted(inside), unpack(sorted(inside), read_parquet), strict=True))
    return [unpacked.get(p) or TableFile(p, _folder(p.parent, root)) for p in tables]


def _folder(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"


def _is_of_part(path: Path, part: str) -> bool:
    """Whether a file belongs to a part: the part is the name of a folder above it, or the file's name begins with it.

    For "train": train/x.parquet and train-00000-of-00002.parquet.
    """
    name = path.name
    return part in path.parts[:-1] or name.startswith((f"{part}-", f"{part}.", f"{part}_"))


def _video_column(path: Path) -> str | None:
    """The column that contains videos, as bytes or as structs of bytes and a path. None if there is none.

    Other columns may contain pictures or sound. So a column whose name is in VIDEO_COLUMNS comes first. Another one
    counts only if no column lists paths of videos.
    """
    try:
        schema = pa.parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table: {error}.") from error
    named = [field.name for field in schema if field.name.casefold() in VIDEO_COLUMNS]
    found = [field.name for field in schema if _holds_structs(field)]
    for name in named:
        if name in found or _holds_bytes(schema.field(name)):
            return str(name)
    has_paths = "path" in Meanings().by_meaning(schema.names)
    return str(found[0]) if found and not has_paths else None


def _holds_structs(field: pa.Field) -> bool:
    if not pa.types.is_struct(field.type) or field.type.get_field_index("bytes") < 0:
        return False
    return _holds_bytes(field.type.field("bytes"))


def _holds_bytes(field: pa.Field) -> bool:
    return bool(
        pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or pa.types.is_binary_view(field.type)
    )


def read_parquet(path: Path) -> Iterator[Sample]:
    """The videos in a table. Raises UserError if the table is damaged."""
    column = _video_column(path)
    assert column is not None
    number, left_out = 0, LeftOut()
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(16):
                for row in batch.to_pylist():
                    video = row.pop(column)
                    video = {"bytes": video} if isinstance(video, bytes) else video
                    if video is not None and video["bytes"] is not None:
                        row = {name: _plain_value(value) for name, value in row.items()}
                        yield Sample(_name(number, video), video["bytes"], row)
                    else:
                        left_out.reasons["rows without a video"] += 1
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table: {error}.") from error
    left_out.report(path)


def _plain_value(value: Any) -> Any:
    """Convert bytes to text, and decimals and durations (in seconds) to floats."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, Decimal) else value


def _name(number: int, video: dict[str, Any]) -> str:
    """A file name that is unique in the table."""
    name = PurePosixPath((video.get("path") or "video.mp4").replace("\\", "/")).name
    return f"{number:08d}-{name}"
