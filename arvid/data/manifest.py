"""A list of videos with captions and labels: a .csv, .tsv, .jsonl or .parquet file."""

from __future__ import annotations

from pathlib import Path

from arvid.data._entries import Entries
from arvid.data._files import FileDataset, FileOptions, Split
from arvid.data._kept_tables import TableFile, read_entries
from arvid.data.clips import ClipSpec
from arvid.data.video import MAX_PIXELS


class VideoManifest(FileDataset):
    """Clips of the videos that a manifest lists; item i is a pure function of (seed, i).

    A .jsonl file holds one object a line; a .csv or .tsv file has a first line with the names of its columns. Capitals
    and spaces in names do not count. What is read, under the first of these names that a row has:

    - the video: `path`, `video`, `file_name`, `filename`, `filepath`, `file_path`, `video_path`, ...: relative to the
      manifest, or absolute; a video file or a folder of frames. WebVid's table has `page_dir` and `videoid`.
    - the caption, which may be absent: `caption`, `text`, `prompt`, `description`, `sentence`. Null and "nan" are none.
    - the class, which may be absent: `label`, `class`, `class_name`, `label_name`. A whole number from 0 (pandas'
      "2.0" is 2), or a name; names are numbered in alphabetical order.
    - a part of the video: `start` and `end` (`start_time`, `time_start`, ...) in seconds or as H:MM:SS.
    - what the video is like: `num_frames` (`frames`, ...) and `fps` of the whole file, `height` and `width`. Where
      frames and rate are known the file is not decoded beforehand; what they say is believed.

    Columns with other names are named in the log.

    Args:
        path: the manifest.
        clip: how clips are cut (17 frames of 64x64 by default).
        video_root: folder that the paths are relative to; that of the manifest by default.
        columns: which column holds what, where it has another name, e.g. {caption: title}. Null leaves one unread.
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
        video_root: str | Path | None = None,
        columns: dict[str, str | None] | None = None,
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
        entries = read_manifest(
            Path(path), root=None if video_root is None else Path(video_root), columns=columns
        )
        super().__init__(entries, options, where=str(path), classes=entries.classes)


def read_manifest(
    path: Path, *, root: Path | None = None, columns: dict[str, str | None] | None = None
) -> Entries:
    """The entries of a manifest; the arguments are those of VideoManifest. Raises UserError as it does."""
    return read_entries([TableFile(path)], root or path.parent, columns)
