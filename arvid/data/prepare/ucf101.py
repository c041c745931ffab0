"""UCF-101 (arXiv:1212.0402): 13,320 clips v_<Class>_gNN_cNN.avi of 101 classes, and three official pairs of lists.

Classes, captions and lists are matched by file names without case: the folder and the lists have HandstandPushups, the
files v_HandStandPushups. The lines of the official lists end with CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from arvid.data.folder import class_caption, read_split_list
from arvid.data.prepare.facts import UCF101
from arvid.data.prepare.prepared import Item, Prepared, hashed_splits
from arvid.data.prepare.sources import link_videos, require_videos, unpacked, videos_below
from arvid.errors import UserError

CLIP = re.compile(r"v_(?P<name>\w+)_g\d+_c\d+", re.IGNORECASE)
_LIST = re.compile(r"(?P<set>.*(?:train|test))list(?P<number>\d*)")


def prepare(source: Path, out: Path, *, lists: Path | None, val_fraction: float) -> Prepared:
    """Prepare the dataset of a folder or archive of its clips.

    Args:
        source: see `facts.UCF101`.
        out: the folder OUT.
        lists: folder or zip file of the official lists (trainlist01.txt, ..., optionally classInd.txt). By default they
            are searched in and beside the source. Without lists, a hash of the recording decides the split.
        val_fraction: share of the recordings for validation, without lists.

    Raises UserError if there are no clips, or `lists` holds no list.
    """
    root = unpacked(source, out)
    names = videos_below(root)
    clips = {name: match["name"] for name in names if (match := CLIP.match(name.split("/")[-1]))}
    require_videos(list(clips), source, "v_<Class>_gNN_cNN.avi, in folders of classes or not")
    list_files = _find_lists(source, root, lists, out)
    classes = _classes(list_files, clips.values())
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    labels = {name: numbers[clip.casefold()] for name, clip in clips.items()}
    items = [Item(name, class_caption(classes[n]), n) for name, n in labels.items()]
    others = len(names) - len(clips)
    remarks = [f"videos of another name: {others:,}"] if others else []
    missing: dict[str, dict[str, int]] = {}
    listed = {name: path for path in list_files if (name := _split_name(path))}
    if listed:
        splits, missing = _take_lists(listed, clips)
    else:
        splits = hashed_splits(list(clips), val_fraction)
        remarks.append("no official lists: the split is by a hash of the recordings")
    link_videos(root, out)
    return Prepared(items=items, splits=splits, classes=classes, missing=missing, remarks=remarks)


def _find_lists(source: Path, root: Path, lists: Path | None, out: Path) -> list[Path]:
    """The files trainlist01.txt ..., and classInd.txt."""
    if lists is not None:
        places = [unpacked(lists, out)]
    else:
        beside = [source.parent / "ucfTrainTestlist", root.parent / "ucfTrainTestlist"]
        places = [root, out / "unpacked", *beside]
    for place in places:
        found = sorted(path for path in place.rglob("*.txt") if _split_name(path))
        if found:
            index = found[0].with_name("classInd.txt")
            return [*found, *([index] if index.is_file() else [])]
    if lists is not None:
        raise UserError(f"{lists} holds no trainlist01.txt, testlist01.txt, ...: {UCF101.get}")
    return []


def _split_name(path: Path) -> str | None:
    """The split of a list file: "train01" for trainlist01.txt; None for other files."""
    match = _LIST.fullmatch(path.stem)
    return f"{match['set']}{match['number']}" if match else None


def _classes(list_files: Sequence[Path], found: Iterable[str]) -> list[str]:
    """Class names in the official order: from classInd.txt, else from the clips."""
    index = next((path for path in list_files if path.stem == "classInd"), None)
    names = set(found)
    if index is not None:
        official = [line.split()[-1] for line in index.read_text().splitlines() if line.strip()]
        known = {name.casefold() for name in official}
        unknown = sorted(name for name in names if name.casefold() not in known)
        if unknown:
            raise UserError(
                f"There are clips of the class {unknown[0]}, but {index} does not name it."
            )
        return official
    by_key = {name.casefold(): name for name in sorted(names)}
    return [by_key[key] for key in sorted(by_key)]


def _take_lists(
    listed: Mapping[str, Path], clips: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, dict[str, int]]]:
    """The clips of each list in its order, and the number of its missing clips."""
    by_key = {_key(name): name for name in clips}
    splits, missing = {}, {}
    for split, path in listed.items():
        keys = [_key(line) for line in read_split_list(path)]
        splits[split] = [by_key[key] for key in dict.fromkeys(keys) if key in by_key]
        absent = len(set(keys) - by_key.keys())
        if absent:
            missing[split] = {"not there": absent}
    return splits, missing


def _key(name: str) -> str:
    """Key of a clip: its file name without ending, in lower case."""
    return PurePosixPath(name.replace("\\", "/")).name.casefold().removesuffix(".avi")
