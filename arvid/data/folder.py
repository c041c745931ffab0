"""A folder of videos with one folder per class, as UCF-101 comes: ROOT/<Class>/<name>.avi."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from arvid.contracts import UserError
from arvid.data._files import SUFFIXES, Entry, FileDataset, FileOptions, Split
from arvid.data.clips import ClipSpec
from arvid.data.video import MAX_PIXELS


class VideoFolder(FileDataset):
    """Clips of ROOT/<Class>/*.{avi,mp4,webm,mkv,mov}; item i is a pure function of (seed, i).

    The label is the place of the class among the class folders in alphabetical order, capitals counting as small
    letters: for UCF-101 that is the official order, from 0. The caption is the class's name in words:
    "ApplyEyeMakeup" becomes "apply eye makeup".

    Args:
        root: the folder that holds the class folders.
        clip: how clips are cut (17 frames of 64x64 by default).
        split: "train", "val" or "all"; decided by a hash of each video's name. Clips of one recording
            (v_*_g01_c01, v_*_g01_c02) stay together.
        val_fraction: share of the recordings that belong to "val".
        split_list: file that lists the videos to take, one a line: UCF-101's own ("Class/v_x.avi 1" or without a
            number) or NBP's ("path<TAB>label"). Paths are compared by their last two parts, capitals counting
            as small letters. The list's numbers are not used. `split` then divides what is listed.
        clips_per_video: clips cut from each video, evenly spread over it.
        seed: of the random windows.
        mirror: swap left and right in a random half of the clips. For training alone.
        motion: measure each clip's motion score.
        strict: broken or missing files are an error instead of being reported and skipped.
        max_pixels: files with larger frames count as broken. 8K by default.

    Raises:
        UserError: there is no such folder or list, or nothing is left to take.
    """

    def __init__(
        self,
        root: str | Path,
        clip: ClipSpec | None = None,
        *,
        split: Split = "all",
        val_fraction: float = 0.1,
        split_list: str | Path | None = None,
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
        entries, classes = find_videos(Path(root))
        missing: list[str] = []
        if split_list is not None:
            entries, missing = take_listed(entries, read_split_list(split_list))
        super().__init__(entries, options, where=str(root), classes=classes, missing=missing)


def find_videos(root: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """The videos in the class folders, by class and name, and the names of the classes."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Give the folder that holds one folder per class.")
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    by_class = {folder.name: _videos_in(folder) for folder in folders}
    classes = tuple(sorted((n for n in by_class if by_class[n]), key=lambda n: (n.casefold(), n)))
    if not classes:
        raise UserError(
            f"{root} holds no videos in class folders. Expected {root}/<Class>/<name> ending in "
            f"{', '.join(SUFFIXES)}; for videos without classes write a manifest (VideoManifest)."
        )
    entries = [
        Entry(path, f"{name}/{path.name}", class_caption(name), label)
        for label, name in enumerate(classes)
        for path in by_class[name]
    ]
    return entries, classes


def _videos_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def class_caption(name: str) -> str:
    """A class's name in words: "ApplyEyeMakeup" is "apply eye makeup"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_-]+", " ", name)
    return " ".join(words.lower().split())


def read_split_list(path: str | Path) -> list[str]:
    """The paths that a split list names, without their labels. Raises UserError if it cannot be read or is empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The split list {path} cannot be read: {error}.") from error
    paths = [re.sub(r"[\t ]+\d+$", "", line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UserError(f"The split list {path} is empty.")
    return paths


def take_listed(entries: Sequence[Entry], listed: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """The listed entries in the order of `entries`, each once, and the listed paths that match none.

    Capitals do not count: UCF-101's lists and folders disagree about HandstandPushups.
    """
    known = {entry.name.casefold() for entry in entries}
    wanted = {_last_two(path): path for path in listed}
    taken = [entry for entry in entries if entry.name.casefold() in wanted]
    return taken, [path for key, path in wanted.items() if key not in known]


def _last_two(path: str) -> str:
    return "/".join(path.replace("\\", "/").split("/")[-2:]).casefold()
