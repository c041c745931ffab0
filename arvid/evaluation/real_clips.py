"""The real clips of a protocol from a folder or manifest of videos, cut and resized as the protocol says."""

from __future__ import annotations

from pathlib import Path

from arvid.contracts import UserError
from arvid.data._files import SUFFIXES, Entry, FileDataset, FileOptions
from arvid.data.folder import find_videos, read_split_list, take_listed
from arvid.data.manifest import read_manifest
from arvid.evaluation.protocols import Protocol


def real_clips(protocol: Protocol, where: Path, split_list: Path | None = None) -> FileDataset:
    """The real clips of a protocol, as many as `where` holds.

    Files that cannot be read or are too short are reported and left out: whether enough are left is for the
    protocol to say.

    Args:
        protocol: one that says how clips are cut.
        where: a folder of class folders, a folder of videos, or a manifest (.jsonl, .csv).
        split_list: file that lists the videos to take (see VideoFolder), for a folder.

    Raises UserError if the protocol leaves the cutting to a run's setting, or nothing is there.
    """
    if protocol.clip is None:
        raise UserError(
            f"Protocol {protocol.name} takes real clips as the setting of a run cuts them, not from a folder. "
            "Name a protocol with a `clip` of its own (see --list-protocols), or write one (docs/protocols.md)."
        )
    entries, classes = _entries(where)
    missing: list[str] = []
    if split_list is not None:
        entries, missing = take_listed(entries, read_split_list(split_list))
    options = FileOptions(
        clip=protocol.clip,
        split="all",
        val_fraction=0.0,
        clips_per_video=1,
        seed=protocol.seed,
        mirror=False,
        motion=False,
        strict=False,
    )
    return FileDataset(entries, options, where=str(where), classes=classes, missing=missing)


def _entries(where: Path) -> tuple[list[Entry], tuple[str, ...]]:
    if where.is_file():
        return read_manifest(where)
    found = videos_in(where) if where.is_dir() else []
    if any(path.parent == where for path in found):
        return [Entry(path, path.relative_to(where).as_posix()) for path in found], ()
    return find_videos(where)


def videos_in(folder: Path) -> list[Path]:
    """The videos in a folder and the folders within, in the order of their paths; hidden ones left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    names = {path: path.relative_to(folder) for path in found}
    kept = [p for p, name in names.items() if not any(part.startswith(".") for part in name.parts)]
    return sorted(kept, key=lambda path: names[path].as_posix())
