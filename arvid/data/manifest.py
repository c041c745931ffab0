"""A list of videos with captions and labels: a .csv, .tsv, .jsonl or .parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arvid.data._entries import Entries
from arvid.data._files import FileDataset, FileOptions
from arvid.data._kept_tables import TableFile, read_entries
from arvid.data.clips import ClipSpec


class VideoManifest(FileDataset):
    """Clips of the videos that a manifest lists; item i is a pure function of (seed, i).

    A .jsonl file has one object per line; a .csv or .tsv file has the column names in its first line. Case and spaces
    in names are ignored. These columns are read; if a row has several names of one meaning, the first counts:

    - path of the video: `path`, `video`, `file_name`, `filename`, `filepath`, `file_path`, `video_path`, ...: relative
      to the manifest, or absolute; a video file or a folder of frames. WebVid's table has `page_dir` and `videoid`.
    - caption (optional): `caption`, `text`, `prompt`, `description`, `sentence`. Null and "nan" are no caption.
    - class (optional): `label`, `class`, `class_name`, `label_name`. A whole number from 0 (pandas' "2.0" is 2), or a
      name; names are numbered in alphabetical order.
    - part of the video (optional): `start` and `end` (`start_time`, `time_start`, ...) in seconds or as H:MM:SS.
    - properties of the file (optional): `num_frames` (`frames`, ...), `fps`, `height` and `width`. A file with a known
      number of frames and rate is not probed; these numbers are trusted.

    The log names columns with other names.

    Args:
        path: the manifest.
        clip: how clips are cut (17 frames of 64x64 by default).
        video_root: folder that the paths are relative to; the manifest's folder by default.
        columns: columns with other names, as meaning: column, e.g. {caption: title}. Null: do not read one.
        options: see `arvid.data._files.FileOptions`.

    Raises:
        UserError: the manifest is missing, has another ending or a bad line (with its number), or no video is left.
    """

    def __init__(
        self,
        path: str | Path,
        clip: ClipSpec | None = None,
        *,
        video_root: str | Path | None = None,
        columns: dict[str, str | None] | None = None,
        **options: Any,
    ) -> None:
        common = FileOptions(clip=clip or ClipSpec(), **options)
        entries = read_manifest(
            Path(path), root=None if video_root is None else Path(video_root), columns=columns
        )
        super().__init__(entries, common, where=str(path), classes=entries.classes)


def read_manifest(
    path: Path, *, root: Path | None = None, columns: dict[str, str | None] | None = None
) -> Entries:
    """The entries of a manifest; the arguments are those of VideoManifest. Raises UserError as it does."""
    return read_entries([TableFile(path)], root or path.parent, columns)
