"""Real clips of a protocol from a folder or manifest of videos, cut and resized as the protocol says."""

from __future__ import annotations

import os
from pathlib import Path

from arvid.contracts import UserError, VideoDataset
from arvid.data._entries import Entries, Entry
from arvid.data._files import FileDataset, FileOptions
from arvid.data._walk import Content, LeftOut, look_into, walk
from arvid.data.folder import find_videos, read_split_list, take_listed
from arvid.data.manifest import read_manifest
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_statistics import SUFFIX, RealStatistics


def real_set(protocol: Protocol, where: Path, split_list: Path | None = None) -> VideoDataset:
    """The clips of `real_clips`, or of a statistics file (`.safetensors`).

    Raises UserError as `real_clips` and `RealStatistics` do, and for `split_list` with a statistics file.
    """
    if protocol.clip is None or where.suffix != SUFFIX or not where.is_file():
        return real_clips(protocol, where, split_list)
    if split_list is not None:
        raise UserError(f"{where} holds statistics of chosen videos: leave --real-list out.")
    return RealStatistics(where, protocol)


def real_clips(protocol: Protocol, where: Path, split_list: Path | None = None) -> FileDataset:
    """All real clips that `where` contains, cut as the protocol says.

    Files that cannot be read or are too short are reported and left out. The protocol checks later whether enough
    are left.

    Args:
        protocol: a protocol with `clip`.
        where: a folder of class folders, a folder of videos, or a manifest (.csv, .tsv, .jsonl, .parquet).
        split_list: file that lists the videos to take (see VideoFolder), for a folder.

    Raises UserError if the protocol has no `clip`, or if there are no videos.
    """
    if protocol.clip is None:
        raise UserError(
            f"Protocol {protocol.name} cuts real clips as a run's setting says, so it cannot take a folder. "
            "Name a protocol with a `clip` of its own (see --list-protocols), or write one (docs/protocols.md)."
        )
    entries = _entries(where)
    missing: list[str] = []
    if split_list is not None:
        entries, missing = take_listed(entries, read_split_list(split_list))
    # no names of their values: a model has names from its training
    conditions: dict[str, tuple[str, ...]] = {name: () for name in protocol.conditions}
    options = FileOptions(clip=protocol.clip, seed=protocol.seed, conditions=conditions)
    return FileDataset(entries, options, where=str(where), classes=entries.classes, missing=missing)


def _entries(where: Path) -> Entries:
    if os.path.isfile(where):
        return read_manifest(where)
    top = look_into(where) if os.path.isdir(where) else Content(where)
    if top.videos or any(look_into(folder).is_frames for folder in top.folders):
        found = videos_in(where)
        return Entries.of(Entry(path, path.relative_to(where).as_posix()) for path in found)
    return find_videos(where)


def videos_in(folder: Path) -> list[Path]:
    """All videos and folders of frames below a folder, sorted by path.

    Hidden ones are left out. Other files are counted in the log.
    """
    left_out = LeftOut()
    found = walk(folder, left_out)
    left_out.report(folder)
    return found
