"""Kinetics-600 (arXiv:1808.01340): lists of YouTube clips, matched with the clips that you downloaded.

A list has the columns label, youtube_id, time_start, time_end. Clips are found by the names that downloaders use:
<youtube_id>_<start>_<end> with six digits each, or <youtube_id>, with any video ending.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arvid.data.prepare.facts import KINETICS600
from arvid.data.prepare.prepared import Item, Prepared
from arvid.data.prepare.sources import link_videos, require_videos, unpacked, videos_below
from arvid.errors import UserError

SPLITS = ("train", "val", "test")
"""Names of the splits. A list belongs to the first split whose name is in the list's name (also validate.csv)."""
_COLUMNS = {"youtube_id", "time_start", "time_end"}


@dataclass(frozen=True)
class Listed:
    """A line of a list."""

    keys: tuple[str, str]
    """Possible names of its file, without ending."""
    label: str | None


def prepare(source: Path, out: Path, *, lists: Path | None) -> Prepared:
    """Prepare the dataset of a folder of clips.

    Args:
        source: see `facts.KINETICS600`.
        out: the folder OUT.
        lists: folder with one or more of train.csv, val.csv (or validate.csv) and test.csv. By default OUT/downloads,
            else the source.

    Raises UserError if there are no clips or no lists, or a list has other columns.
    """
    root = unpacked(source, out)
    names = videos_below(root)
    require_videos(names, source, KINETICS600.source)
    by_key = {PurePosixPath(name).stem: name for name in names}
    listed = {split: _read(path) for split, path in _find_lists(lists, out, source).items()}
    classes = sorted({one.label for lines in listed.values() for one in lines if one.label})
    numbers = {name: number for number, name in enumerate(classes)}
    items: dict[str, Item] = {}
    splits: dict[str, list[str]] = {}
    missing: dict[str, Counter[str]] = {}
    for split, lines in listed.items():
        splits[split], missing[split] = [], Counter()
        for one in lines:
            name = next((by_key[key] for key in one.keys if key in by_key), None)
            reason = _fault(root, name)
            if reason or name is None:
                missing[split][reason] += 1
                continue
            splits[split].append(name)
            label = None if one.label is None else numbers[one.label]
            items[name] = Item(name, one.label or "", label)
    link_videos(root, out)
    unlisted = len(set(names) - items.keys()) - sum(whys["empty"] for whys in missing.values())
    remarks = [f"videos that no list names: {unlisted:,}"] if unlisted > 0 else []
    return Prepared(
        items=list(items.values()),
        splits=splits,
        classes=classes,
        missing={split: dict(reasons) for split, reasons in missing.items()},
        remarks=remarks,
    )


def _fault(root: Path, name: str | None) -> str:
    """Why a listed clip is missing; "" if it is there."""
    if name is None:
        return "not downloaded"
    return "" if (root / name).stat().st_size else "empty"


def _find_lists(lists: Path | None, out: Path, source: Path) -> Mapping[str, Path]:
    """Split -> file of its list."""
    places = [lists] if lists else [out / "downloads", source]
    for place in places:
        found: dict[str, Path] = {}
        for path in sorted(place.glob("*.csv")):
            split = next((split for split in SPLITS if split in path.stem.lower()), None)
            # The held-out test list is another set of clips.
            if split and "holdout" not in path.stem.lower():
                found.setdefault(split, path)
        if found:
            return {split: found[split] for split in SPLITS if split in found}
    raise UserError(
        f"{places[-1]} holds no train.csv, val.csv or test.csv. Give the folder of the lists with --lists, or fetch "
        "them with --download."
    )


def _read(path: Path) -> list[Listed]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        absent = _COLUMNS - set(reader.fieldnames or ())
        if absent:
            raise UserError(f"{path} has no column {', '.join(sorted(absent))}.")
        return [_listed(path, reader.line_num, row) for row in reader]


def _listed(path: Path, line: int, row: Mapping[str, str]) -> Listed:
    try:
        start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, line {line}: start and end must be seconds.") from error
    youtube_id = row["youtube_id"]
    return Listed((f"{youtube_id}_{start:06d}_{end:06d}", youtube_id), row.get("label") or None)
