"""A folder of videos with one folder per class, such as UCF-101: ROOT/<Class>/<name>.avi."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arvid.contracts import UserError
from arvid.data._entries import Entries, Entry
from arvid.data._files import FileDataset, FileOptions, named
from arvid.data._walk import Content, LeftOut, look_into, walk
from arvid.data.clips import ClipSpec

logger = logging.getLogger(__name__)


class VideoFolder(FileDataset):
    """Clips of the videos in ROOT/<Class>/; item i is a pure function of (seed, i).

    A video is a file with an ending in `arvid.data._walk.SUFFIXES`, or a folder of frames (pictures, sorted by name, at
    25 frames per second). Folders may be links. If no folder in ROOT is a class, the videos directly in ROOT are taken,
    without labels. The log counts the files that are left out.

    Labels number the class folders in alphabetical order from 0, ignoring case; for UCF-101 this is the official order.
    A class without videos keeps its label. The caption is the class name in words: "ApplyEyeMakeup" becomes
    "apply eye makeup".

    Args:
        root: the folder that holds the class folders.
        clip: how clips are cut (17 frames of 64x64 by default).
        split_list: file that lists the videos to take, one per line: UCF-101's own ("Class/v_x.avi 1" or without a
            number) or NBP's ("path<TAB>label"). Paths are compared by their last two parts, ignoring case. The numbers
            in the list are not used. `split` then divides the listed videos.
        options: see `arvid.data._files.FileOptions`.

    Raises:
        UserError: the folder or list does not exist, or no video is left.
    """

    def __init__(
        self,
        root: str | Path,
        clip: ClipSpec | None = None,
        *,
        split_list: str | Path | None = None,
        **options: Any,
    ) -> None:
        common = FileOptions(clip=clip or ClipSpec(), **options)
        entries = find_videos(Path(root))
        missing: list[str] = []
        if split_list is not None:
            entries, missing = take_listed(entries, read_split_list(split_list))
        super().__init__(entries, common, where=str(root), classes=entries.classes, missing=missing)


def find_videos(root: Path) -> Entries:
    """The videos in the class folders, by class and name. Raises UserError if there are none."""
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder. Give the folder that holds one folder per class.")
    top, left_out = look_into(root), LeftOut()
    contents = {folder.name: look_into(folder) for folder in top.folders}
    by_class = {
        name: _videos_in(content, left_out)
        for name, content in contents.items()
        if content.is_class and not content.is_frames
    }
    without = [content.path for content in contents.values() if content.is_frames]
    direct = sorted([*top.videos, *without])
    left_out.add(top)
    if not any(by_class.values()):
        entries = Entries.of(Entry(path, path.name) for path in direct)
    else:
        left_out.reasons["videos beside the class folders"] += len(direct)
        entries = _labelled(by_class)
    left_out.report(root)
    if not entries:
        raise UserError(
            f"{root} holds no videos in class folders. Expected {root}/<Class>/<name> ending in .mp4, .avi, ..., or "
            "folders of frames."
        )
    return entries


def _labelled(by_class: Mapping[str, Sequence[Path]]) -> Entries:
    classes = sorted(by_class, key=lambda name: (name.casefold(), name))
    empty = [name for name in classes if not by_class[name]]
    if empty:
        logger.warning("classes without a video, which keep their labels: %s", named(empty))
    rows = (
        Entry(path, f"{name}/{path.name}", class_caption(name), label)
        for label, name in enumerate(classes)
        for path in by_class[name]
    )
    return Entries.of(rows, classes)


def _videos_in(content: Content, left_out: LeftOut) -> list[Path]:
    """The videos directly in a class folder."""
    left_out.add(content)
    found = list(content.videos)
    for folder in content.folders:
        inside = look_into(folder)
        if inside.is_frames:
            found.append(folder)
        else:
            deeper = walk(folder, LeftOut())
            left_out.reasons["videos deeper than a class folder"] += len(deeper)
    return sorted(found)


def class_caption(name: str) -> str:
    """A class's name in words: "ApplyEyeMakeup" is "apply eye makeup"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_-]+", " ", name)
    return " ".join(words.lower().split())


def read_split_list(path: str | Path) -> list[str]:
    """The paths in a split list, without labels. Raises UserError if the list is unreadable or empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"The split list {path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The split list {path} is not UTF-8 ({error}). Save it as UTF-8."
        ) from error
    paths = [re.sub(r"[\t ]+\d+$", "", line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UserError(f"The split list {path} is empty.")
    return paths


def take_listed(entries: Entries, listed: Sequence[str]) -> tuple[Entries, list[str]]:
    """The listed entries in the order of `entries`, each once, and the listed paths without an entry.

    Case is ignored, because UCF-101's lists and folders disagree about HandstandPushups. A folder of frames matches the
    listed file of its name, without the ending.
    """
    wanted = {_last_two(path): path for path in listed}
    stems = {key.rpartition(".")[0]: key for key in wanted}
    keys = [_listed_as(entry, wanted, stems) for entry in entries]
    known = set(keys)
    taken = entries.take([row for row, key in enumerate(keys) if key is not None])
    return taken, [path for key, path in wanted.items() if key not in known]


def _listed_as(entry: Entry, wanted: Mapping[str, str], stems: Mapping[str, str]) -> str | None:
    """The key under which an entry is listed, or None."""
    name = _plain(entry.name)
    if name in wanted:
        return name
    return stems.get(name) if os.path.isdir(entry.path) else None


def _last_two(path: str) -> str:
    return _plain("/".join(path.replace("\\", "/").split("/")[-2:]))


def _plain(name: str) -> str:
    """A name in lower case and in one Unicode form: macOS writes an accented letter as two characters."""
    return unicodedata.normalize("NFC", name).casefold()
