"""What the datasets of video files share: looking at the files once, reporting the bad ones, cutting clips.

All files are looked at once when a dataset is made, because neither their headers nor their endings tell how many
clips there are; what was found is remembered on disk, so the next time costs one look at each file's size and date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._survey import content_hash, contents
from arvid.data._survey import probe_files as probe_files
from arvid.data.clips import ClipSpec, clip_indices, frames_there
from arvid.data.motion import MotionCache
from arvid.data.video import MAX_PIXELS, Probe, VideoError, read_frames
from arvid.files import sha256_json
from arvid.ranges import SHARE, at_least

logger = logging.getLogger(__name__)

SUFFIXES = (".avi", ".mp4", ".webm", ".mkv", ".mov")
Split = Literal["train", "val", "all"]

_VERSION = 2  # of reading and cutting: part of the fingerprint
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
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "all"):
            raise UserError(f"split is one of train, val, all, got {self.split!r}.")
        SHARE.require(val_fraction=self.val_fraction)
        at_least(1).require(clips_per_video=self.clips_per_video, max_pixels=self.max_pixels)
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
        probes, self.broken = probe_files(present, max_pixels=options.max_pixels)
        self._report_problems(where)
        readable = [(e, probes[e.path]) for e in present if e.path in probes]
        self._videos = [(e, p) for e, p in readable if self._is_long_enough(p)]
        self.too_short = tuple(e.name for e, p in readable if not self._is_long_enough(p))
        self._report_short(where)
        if not self._videos:
            raise UserError(self._empty_message(where, len(entries), len(chosen)))
        self._stamps = [_stamp(entry.path) for entry, _ in self._videos]
        self._fingerprint = ""
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
        self._require_unchanged(number)
        rng = np.random.default_rng([options.seed, index])
        indices = clip_indices(
            probe.num_frames,
            probe.fps,
            options.clip,
            times=probe.times,
            rng=rng,
            window=window,
            num_windows=options.clips_per_video,
        )
        assert indices is not None, "videos that are too short were left out"
        video = read_frames(
            entry.path,
            indices,
            probe=probe,
            size=options.clip.height_width,
            resize=options.clip.resize,
            max_pixels=options.max_pixels,
        )
        if options.clip.short == "black":
            video[frames_there(probe.num_frames, probe.fps, options.clip, probe.times) :] = 0
        if options.mirror and rng.random() < 0.5:
            video = np.ascontiguousarray(video[:, :, ::-1])
        return Clip(
            video=video,
            caption=entry.caption,
            label=entry.label,
            motion=self._motion_of(number, indices, video),
            fps=options.clip.clip_fps(probe.fps),
            name=entry.name if options.clips_per_video == 1 else f"{entry.name}#{window}",
        )

    def fingerprint(self) -> str:
        """Hash of the files' names and contents, captions, labels and options; not of where the files lie."""
        if not self._fingerprint:  # files may change while a run goes on, and it stays the same run
            hashes = self._contents()
            files = [
                [e.name, content, e.caption, e.label]
                for (e, _), content in zip(self._videos, hashes, strict=True)
            ]
            self._fingerprint = self._hash(_VERSION, files)
        return self._fingerprint

    def earlier_fingerprint(self) -> str | None:
        """The hash of names and sizes in its place up to version 0.1; None where clips were others then."""
        if any(self._was_read_otherwise(probe) for _, probe in self._videos):
            return None
        sizes = [size for size, _ in self._stamps]
        return self._hash(
            1,
            [
                [e.name, size, e.caption, e.label]
                for (e, _), size in zip(self._videos, sizes, strict=True)
            ],
        )

    def _hash(self, version: int, files: list[list[Any]]) -> str:
        options = dataclasses.asdict(self.options)
        for name in (
            "split",
            "val_fraction",
            "strict",
            "max_pixels",
        ):  # these only choose the files
            del options[name]
        return sha256_json({"version": version, "files": files, "classes": self.classes, **options})

    def _contents(self) -> list[str]:
        """Hashes of the files' contents; those that were not looked at are read now."""
        unknown = contents([entry.path for entry, probe in self._videos if not probe.content])
        return [probe.content or unknown[entry.path] for entry, probe in self._videos]

    def _was_read_otherwise(self, probe: Probe) -> bool:
        """Whether version 0.1 gave other clips: it knew no mirroring, no shape of pixels and no varying rate."""
        by_time = probe.times is not None and self.options.clip.fps is not None
        return by_time or not probe.as_stored

    def _require_unchanged(self, number: int) -> None:
        """Raise VideoError for a file with another content than when the dataset was made."""
        entry, probe = self._videos[number]
        try:
            stamp = _stamp(entry.path)
            if stamp == self._stamps[number]:
                return
            same_size = stamp[0] == self._stamps[number][0]
            if same_size and probe.content in ("", content_hash(entry.path)):
                self._stamps[number] = stamp
                return
        except OSError:
            return  # reading says why
        raise VideoError(
            entry.path,
            "it has changed since the dataset was made",
            "Leave files alone that are in use.",
        )

    def _is_long_enough(self, probe: Probe) -> bool:
        start = dataclasses.replace(self.options.clip, window="start")
        indices = clip_indices(probe.num_frames, probe.fps, start, times=probe.times)
        return indices is not None

    def _motion_of(self, number: int, indices: np.ndarray, video: np.ndarray) -> float | None:
        if self._motion is None:
            return None
        entry, probe = self._videos[number]
        clip = self.options.clip
        cut = [indices.tolist(), clip.height_width, clip.resize]
        content = probe.content or contents([entry.path])[entry.path]
        return self._motion.score([content, cut], video)

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


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
