"""What the datasets of video files share: looking at the files once, reporting the bad ones, cutting clips.

All files are decoded once when a dataset is made, because neither their headers nor their endings tell how many
clips there are; what was found is remembered on disk, so the next time costs one look at each file's size and date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._ledger import Ledger
from arvid.data.cache_dir import cache_dir
from arvid.data.clips import ClipSpec, clip_indices, frames_there, resize_frames
from arvid.data.motion import MotionCache
from arvid.data.video import Probe, VideoError, probe_video, read_frames
from arvid.files import sha256_json
from arvid.ranges import SHARE, at_least

logger = logging.getLogger(__name__)

SUFFIXES = (".avi", ".mp4", ".webm", ".mkv", ".mov")
Split = Literal["train", "val", "all"]

_VERSION = 1  # of probing and cutting: part of the cache's keys and of the fingerprint
_NAMED = 5  # names in a message about many files


@dataclass(frozen=True)
class Entry:
    """One video of a dataset; `name` is its path inside the dataset, with forward slashes."""

    path: Path
    name: str
    caption: str = ""
    label: int | None = None


@dataclass(frozen=True)
class FileOptions:
    """How a dataset treats its files; the constructors of the datasets explain each."""

    clip: ClipSpec
    split: Split
    val_fraction: float
    clips_per_video: int
    seed: int
    mirror: bool
    motion: bool
    strict: bool

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "all"):
            raise UserError(f"split is one of train, val, all, got {self.split!r}.")
        SHARE.require(val_fraction=self.val_fraction)
        at_least(1).require(clips_per_video=self.clips_per_video)
        at_least(0).require(seed=self.seed)


class FileDataset(VideoDataset):
    """Clips of the entries whose files can be read and are long enough, in the order given.

    `broken` maps the name of each unreadable file to the reason, `missing` names the files that are listed but not
    there, `too_short` those that have too few frames for a clip.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        options: FileOptions,
        *,
        where: str,
        classes: tuple[str, ...] = (),
        missing: Sequence[str] = (),
    ) -> None:
        self.options = options
        self.classes = classes
        chosen = [e for e in entries if in_split(e.name, options.split, options.val_fraction)]
        absent = {e.name for e in chosen if not e.path.exists()}
        self.missing = (*missing, *sorted(absent))
        present = [e for e in chosen if e.name not in absent]
        probes, self.broken = probe_files(present)
        self._report_problems(where)
        readable = [(e, probes[e.path]) for e in present if e.path in probes]
        self._videos = [(e, p) for e, p in readable if self._is_long_enough(p)]
        self.too_short = tuple(e.name for e, p in readable if not self._is_long_enough(p))
        self._report_short(where)
        if not self._videos:
            raise UserError(self._empty_message(where, len(entries), len(chosen)))
        self._motion = MotionCache() if options.motion else None

    def __len__(self) -> int:
        return len(self._videos) * self.options.clips_per_video

    def __getitem__(self, index: int) -> Clip:
        """The clip at an index. Raises VideoError if its file has changed since the dataset was made."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        options = self.options
        number, window = divmod(index, options.clips_per_video)
        entry, probe = self._videos[number]
        rng = np.random.default_rng([options.seed, index])
        indices = clip_indices(
            probe.num_frames,
            probe.fps,
            options.clip,
            rng=rng,
            window=window,
            num_windows=options.clips_per_video,
        )
        assert indices is not None, "videos that are too short were left out"
        video = resize_frames(
            read_frames(entry.path, indices), options.clip.height_width, options.clip.resize
        )
        if options.clip.short == "black":
            video[frames_there(probe.num_frames, probe.fps, options.clip) :] = 0
        if options.mirror and rng.random() < 0.5:
            video = np.ascontiguousarray(video[:, :, ::-1])
        return Clip(
            video=video,
            caption=entry.caption,
            label=entry.label,
            motion=self._motion_of(entry, indices, video),
            fps=options.clip.clip_fps(probe.fps),
            name=entry.name if options.clips_per_video == 1 else f"{entry.name}#{window}",
        )

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes, captions, labels and options; not of where the files lie."""
        files = [[e.name, e.path.stat().st_size, e.caption, e.label] for e, _ in self._videos]
        options = dataclasses.asdict(self.options)
        for name in ("split", "val_fraction", "strict"):  # these only choose the files
            del options[name]
        return sha256_json(
            {"version": _VERSION, "files": files, "classes": self.classes, **options}
        )

    def _is_long_enough(self, probe: Probe) -> bool:
        start = dataclasses.replace(self.options.clip, window="start")
        return clip_indices(probe.num_frames, probe.fps, start) is not None

    def _motion_of(self, entry: Entry, indices: np.ndarray, video: np.ndarray) -> float | None:
        if self._motion is None:
            return None
        clip = self.options.clip
        cut = [indices.tolist(), clip.height_width, clip.resize]
        return self._motion.score([file_key(entry.path), cut], video)

    def _report_problems(self, where: str) -> None:
        """Name each broken file once with its reason; listed files that are absent are told together."""
        messages = [f"{where}: skipped {name}: {why}" for name, why in self.broken.items()]
        if self.missing:
            messages.append(
                f"{where}: {len(self.missing)} listed files are not there: {named(self.missing)}"
            )
        if messages and self.options.strict:
            raise UserError(
                "\n".join(messages) + "\nMend them, or set strict to false to skip them."
            )
        for message in messages:
            logger.warning("%s", message)
        if self.broken:
            logger.warning("%s: %d broken files skipped in all", where, len(self.broken))

    def _report_short(self, where: str) -> None:
        if self.too_short:
            logger.warning(
                "%s: %d videos are too short for a clip of %d frames and left out: %s",
                where,
                len(self.too_short),
                self.options.clip.num_frames,
                named(self.too_short),
            )

    def _empty_message(self, where: str, num_entries: int, num_chosen: int) -> str:
        if num_entries and not num_chosen:
            return (
                f"{where}: none of its {num_entries} videos falls into the split "
                f"{self.options.split!r} with val_fraction {self.options.val_fraction}. "
                "Change val_fraction, or give a list of your own."
            )
        return (
            f"{where}: no video is left of {num_chosen + len(self.missing)}: {len(self.missing)} missing, "
            f"{len(self.broken)} broken, {len(self.too_short)} too short for "
            f"{self.options.clip.num_frames} frames. Ask for shorter clips or pad them "
            "(short: pad) if they are too short; otherwise check the paths and the files."
        )


def named(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def in_split(name: str, split: Split, val_fraction: float) -> bool:
    """Whether a video belongs to the split: decided by a hash of its name, so other files do not matter.

    UCF-101 cuts several clips (c01, c02, ...) out of one recording (g01), nearly alike: they stay together.
    """
    if split == "all":
        return True
    recording = re.sub(r"(_g\d+)_c\d+(\.\w+)?$", r"\1", name)
    fraction = int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big") / 2**64
    return (fraction < val_fraction) == (split == "val")


def file_key(path: Path) -> list[str | int]:
    """Tells a file and its content apart from others without reading it."""
    stat = path.stat()
    return [_VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns]


def probe_files(entries: Iterable[Entry]) -> tuple[dict[Path, Probe], dict[str, str]]:
    """Look at every file, or remember what it was like: readable ones by path, reasons of the others by name.

    Failures are not remembered: a file may become readable (permissions, say) without changing.
    """
    names = {entry.path: entry.name for entry in entries}
    ledger = Ledger(cache_dir() / "probes.jsonl")
    known = {path: ledger.get(file_key(path)) for path in names}
    probes = {path: Probe(**value) for path, value in known.items() if value is not None}
    unknown = [path for path in names if path not in probes]
    broken = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_try_probe, unknown)
        progress = tqdm(
            found, "looking at videos", len(unknown), unit="file", delay=1, disable=None
        )
        for path, result in zip(unknown, progress, strict=True):
            if isinstance(result, VideoError):
                broken[names[path]] = result.reason
                continue
            probes[path] = result
            ledger.add(file_key(path), dataclasses.asdict(result))
    return probes, broken


def _try_probe(path: Path) -> Probe | VideoError:
    try:
        return probe_video(path)
    except VideoError as error:
        return error
