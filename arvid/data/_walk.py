"""Find videos below a folder: files by their ending, and folders of frames. Links are followed, except loops."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arvid.data import pictures
from arvid.data._names import is_utf8

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".mp4", ".m4v", ".mp4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mj2", ".ismv", ".insv"),
    *(".avi", ".divx", ".mkv", ".mk3d", ".webm", ".ogv", ".ogg", ".ogm"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".m2p", ".vob", ".mod", ".tod"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".tp", ".trp", ".wtv", ".dvr-ms"),
    *(".wmv", ".asf", ".flv", ".rm", ".rmvb", ".mxf", ".dv", ".dav", ".amv"),
    *(".y4m", ".nut", ".ivf"),
    *(".h264", ".264", ".avc", ".hevc", ".h265", ".265", ".obu", ".mjpeg", ".mjpg"),
    *(".gif", ".apng", ".webp"),
)
"""Endings of videos, in any case."""
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that operating systems and archivers add. They are skipped like hidden folders."""
NON_VIDEO_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml", ".yaml", ".yml", ".toml"),
    *(".md", ".pdf", ".html", ".py", ".sh", ".log", ".srt", ".vtt", ".npy", ".npz", ".pt"),
    *(".safetensors", ".pkl", ".mat", ".zip", ".tar", ".gz"),
)
"""Endings of files that are not videos. A folder with only such files is not a class."""


@dataclass
class Content:
    """Direct content of a folder without hidden files, each list sorted by name."""

    path: Path
    videos: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    misnamed: list[Path] = field(default_factory=list)
    """Names that are not UTF-8, which tables and records cannot hold."""

    @property
    def is_frames(self) -> bool:
        """Whether the folder is one video: pictures, but no videos and no folders."""
        return bool(self.pictures) and not self.videos and not self.folders

    @property
    def is_class(self) -> bool:
        """Whether the folder can be a class: it is not one of text files alone."""
        files = [*self.videos, *self.pictures, *self.others]
        is_text = [path.suffix.lower() in NON_VIDEO_SUFFIXES for path in files]
        return not files or not all(is_text) or bool(self.folders)


class LeftOut:
    """Counts the files that are left out, by reason, for the log."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def add(self, content: Content, *, pictures_too: bool = True) -> None:
        """Count the files of a folder that are not videos."""
        for path in content.others:
            self.reasons[_why_no_video(path)] += 1
        if content.misnamed:
            self.reasons["names that are not UTF-8 (rename them)"] += len(content.misnamed)
        if content.pictures and pictures_too:
            self.reasons["pictures beside videos or folders"] += len(content.pictures)

    def report(self, where: Path) -> None:
        """Log the counts."""
        if +self.reasons:  # + drops counts of zero
            found = sorted((+self.reasons).items())
            counts = ", ".join(f"{count} {why}" for why, count in found)
            logger.warning("%s: left out by reason: %s", where, counts)


def _why_no_video(path: Path) -> str:
    if not path.suffix:
        return "without an ending (rename videos, or list them in a manifest)"
    return f"{path.suffix.lower()} (no video)"


def look_into(folder: Path) -> Content:
    """Content of a folder. An unreadable folder counts as empty, with a warning."""
    content = Content(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        logger.warning("%s cannot be listed: %s", folder, error.strerror or error)
        return content
    for name in names:
        if not name.startswith(".") and name not in SYSTEM_FOLDERS:
            path = folder / name
            _list_for(content, path).append(path)
    return content


def _list_for(content: Content, path: Path) -> list[Path]:
    if not is_utf8(path.name):
        return content.misnamed
    if os.path.isdir(path):
        return content.folders
    if path.suffix.lower() in SUFFIXES:
        return content.videos
    if path.suffix.lower() in pictures.ENDINGS:
        return content.pictures
    return content.others


def walk(folder: Path, left_out: LeftOut) -> list[Path]:
    """All videos below a folder, sorted by their paths."""
    found: list[Path] = []
    for content in contents(folder, left_out):
        is_video = content.is_frames and content.path != folder
        left_out.add(content, pictures_too=not is_video)
        found += [content.path] if is_video else content.videos
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def contents(
    folder: Path, left_out: LeftOut, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[Content]:
    """Contents of a folder and of all folders below it. A link to a folder above itself is not followed."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        left_out.reasons["links to a folder above (a loop)"] += 1
        return
    content = look_into(folder)
    yield content
    for inside in content.folders:
        yield from contents(inside, left_out, (*above, here))
