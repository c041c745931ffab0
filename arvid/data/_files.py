"""Base class of the datasets of video files: it probes the files, reports bad ones and cuts clips.

Files are probed once, when a dataset is made, because headers do not tell the number of frames reliably. A manifest can
state it instead. Probes are kept on disk, so the next start only looks at each file's size and times.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._described import described, sha256_with_files
from arvid.data._entries import Entries, Entry
from arvid.data._names import other_spellings
from arvid.data._survey import content_hash, contents, file_stamp
from arvid.data._survey import probe_files as probe_files
from arvid.data._videos import DistinctFiles, Videos, is_long_enough
from arvid.data.clips import ClipSpec, clip_indices, frames_there, resize_frames
from arvid.data.frame_values import (
    read_values,
    require_per_frame,
    values_digest,
    values_of_frames,
)
from arvid.data.motion import MotionCache
from arvid.data.pictures import is_pictures, read_pictures
from arvid.data.video import MAX_PIXELS, Probe, VideoError, read_frames
from arvid.ranges import SHARE, at_least

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "all"]

_VERSION = 2  # of reading and cutting: part of the fingerprint
MANY = 100_000
"""Above this number of files, those with stated frame counts and rates are not looked at before they are read."""

_NAMED = 5  # names listed in a message about many files


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Options that all datasets of files have. Their constructors take these fields as `**options`.

    Args:
        clip: how clips are cut.
        split: "train", "val" or "all"; decided by a hash of each video's name (its path in a list). In class folders,
            clips of one recording (v_*_g01_c01, v_*_g01_c02) stay together.
        val_fraction: share of the videos (in class folders, of the recordings) that belong to "val".
        clips_per_video: clips cut from each video, at evenly spaced times.
        seed: seed of the random windows.
        mirror: swap left and right in a random half of the clips. For training only.
        motion: measure each clip's motion score.
        strict: raise an error for broken or missing files; by default they are reported and skipped.
        max_pixels: files with larger frames count as broken. 8K by default.
        conditions: conditions per frame in .npz files beside the videos (see `arvid.data.frame_values`), each with the
            names of its class ids or vector components, such as {actions: [stay, left, right]}.

    Raises UserError for values outside their ranges.
    """

    clip: ClipSpec
    split: Split = "all"
    val_fraction: float = 0.1
    clips_per_video: int = 1
    seed: int = 0
    mirror: bool = False
    motion: bool = False
    strict: bool = False
    max_pixels: int = MAX_PIXELS
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "all"):
            raise UserError(f"split is one of train, val, all, got {self.split!r}.")
        SHARE.require(val_fraction=self.val_fraction)
        at_least(1).require(clips_per_video=self.clips_per_video, max_pixels=self.max_pixels)
        at_least(0).require(seed=self.seed)
        require_per_frame(self.conditions)
        if self.mirror and self.conditions:
            raise UserError(
                f"Mirrored clips would contradict their {', '.join(self.conditions)}: set mirror to false."
            )


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The frames of a clip in a video file."""

    indices: NDArray[np.int64]
    """Indices in the file, ascending (T,)."""
    num_there: int
    """Number of frames that the video has. The rest repeat its last frame."""
    first: int
    """First frame of the video in its file; the video may be a part of the file."""
    num_frames: int
    """Number of frames of the video."""
    fps: float
    """Frame rate of the file."""


class FileDataset(VideoDataset):
    """Clips of the entries whose files are readable and long enough, in the given order.

    `broken` maps names of unreadable files to the reason. `missing` lists files that do not exist, `too_short` videos
    with too few frames for a clip.
    """

    def __init__(
        self,
        entries: Entries,
        options: FileOptions,
        *,
        where: str,
        classes: tuple[str, ...] = (),
        missing: Sequence[str] = (),
    ) -> None:
        self.options = options
        self.classes = classes
        fractions = entries.numbers("fraction")
        chosen = np.flatnonzero(_of_split(fractions, options.split, options.val_fraction))
        stated = entries.stated()
        # A large manifest that states frames and rates is believed: only the other files are looked at.
        looked_at = chosen[~stated[chosen]] if len(chosen) > MANY else chosen
        entries, files, is_there = _locate(entries, looked_at, where)
        absent = {files.entries[i].name for i in np.flatnonzero(~is_there)}
        self.missing = (*missing, *sorted(absent))
        is_unknown = files.with_any(~stated[files.rows]) & is_there
        wanted = [files.entries[i] for i in np.flatnonzero(is_unknown)]
        probes, self.broken = probe_files(wanted, max_pixels=options.max_pixels)
        is_probed = np.array([entry.path in probes for entry in files.entries], bool)
        is_usable = is_there & (is_probed | ~is_unknown)
        self._is_believed = len(looked_at) < len(chosen)
        usable = [] if self._is_believed else np.flatnonzero(is_usable).tolist()
        self._stamps, unusable = _file_stamps([files.entries[i] for i in usable])
        # By path: two files of an absolute path can have one name.
        is_usable &= np.array([entry.path not in unusable for entry in files.entries], bool)
        self.broken |= {e.name: unusable[e.path] for e in files.entries if e.path in unusable}
        self._report_problems(where)
        bad = files.rows_of(~is_usable)
        readable = chosen[~np.isin(chosen, bad)] if len(bad) else chosen
        is_enough = is_long_enough(entries, readable, files, probes, options.clip)
        self.too_short = tuple(entries.names(readable[~is_enough]))
        self._videos = Videos(entries, readable[is_enough], probes)
        self.has_captions = entries.has("caption", self._videos.rows)
        self._report_short(where)
        if not self._videos:
            num_listed = len(chosen) + len(missing)
            raise UserError(self._empty_message(where, len(entries), len(chosen), num_listed))
        _require_one_there(self._videos, where)
        if options.conditions:
            read_values(self._videos[0][0].path, options.conditions)
        self.value_names = {
            name: tuple(given) for name, given in options.conditions.items() if given
        }
        self._fingerprint = ""
        self._motion = MotionCache() if options.motion else None

    def __len__(self) -> int:
        return len(self._videos) * self.options.clips_per_video

    def __getitem__(self, index: int) -> Clip:
        """The clip at an index. Raises VideoError if its file is unreadable, or has changed since the start."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        options = self.options
        entry, probe = self._videos[index // options.clips_per_video]
        self._require_unchanged(entry.path, probe)
        rng = np.random.default_rng([options.seed, index])
        cut = self._cut(index, rng)
        video = read_clip(entry.path, cut, options.clip, probe=probe, max_pixels=options.max_pixels)
        if options.mirror and rng.random() < 0.5:
            video = np.ascontiguousarray(video[:, :, ::-1])  # torch takes no negative strides
        return Clip(
            video=video,
            caption=entry.caption,
            label=entry.label,
            motion=self._motion_of(entry, probe, cut.indices, video),
            fps=options.clip.clip_fps(probe.fps),
            name=self.clip_name(index),
            conditions=values_of_frames(entry.path, options.conditions, cut.indices)
            if options.conditions
            else {},
        )

    def clip_name(self, index: int) -> str:
        """The name of the clip at an index, without reading it."""
        number, window = divmod(index, self.options.clips_per_video)
        name = self._videos[number][0].name
        return name if self.options.clips_per_video == 1 else f"{name}#{window}"

    def cut(self, index: int) -> Cut:
        """The frames of the clip at an index, without reading them."""
        return self._cut(index, np.random.default_rng([self.options.seed, index]))

    def _cut(self, index: int, rng: np.random.Generator) -> Cut:
        """`cut` with the clip's generator. A random window takes its first number, mirroring the next one."""
        clip = self.options.clip
        number, window = divmod(index, self.options.clips_per_video)
        entry, probe = self._videos[number]
        first, num_frames = entry.section(probe)
        times = None if probe.times is None else probe.times[first : first + num_frames]
        indices = clip_indices(
            num_frames,
            probe.fps,
            clip,
            times=times,
            rng=rng,
            window=window,
            num_windows=self.options.clips_per_video,
        )
        assert indices is not None, "videos that are too short were left out"
        return Cut(
            indices=first + indices,
            num_there=frames_there(num_frames, probe.fps, clip, times),
            first=first,
            num_frames=num_frames,
            fps=probe.fps,
        )

    def fingerprint(self) -> str:
        """Hash of the files' names and contents, captions, labels and options. Their folder does not count.

        For a large manifest with stated frames and rates, the hash of its columns replaces that of the contents.
        """
        if not self._fingerprint:  # kept, because a run stays the same run if its files change
            self._fingerprint = self._hash(_VERSION, self._description())
        return self._fingerprint

    def _description(self) -> Iterable[memoryview | bytes]:
        """JSON of the videos, in pieces."""
        if self._is_believed:
            return [json.dumps(self._videos.digest())[1:-1].encode()]
        files = self._videos.files()
        return described(files, self._contents(files))

    def earlier_fingerprint(self) -> str | None:
        """The fingerprint that version 0.1 made, of names and sizes. None if it read other clips from the files."""
        if self._is_believed:
            return None
        files = self._videos.files()
        probes = (self._videos.probes.get(entry.path) for entry in files.entries)
        if any(probe and self._was_read_otherwise(probe) for probe in probes):
            return None
        return self._hash(1, described(files, {p: size for p, (size, *_) in self._stamps.items()}))

    def _hash(self, version: int, files: Iterable[memoryview | bytes]) -> str:
        options = dataclasses.asdict(self.options)
        # These only choose files, and the files are hashed themselves.
        for name in ("split", "val_fraction", "strict", "max_pixels"):
            del options[name]
        if not options["conditions"]:  # hashes are older than conditions
            del options["conditions"]
        elif not self._is_believed:
            paths = [entry.path for entry in self._videos.files().entries]
            options["values"] = values_digest(paths, options["conditions"])
        return sha256_with_files({"version": version, "classes": self.classes, **options}, files)

    def _contents(self, files: DistinctFiles) -> dict[Path, str]:
        """Hashes of the files' contents. Files without a probe are read now."""
        probes = {entry.path: self._videos.probes.get(entry.path) for entry in files.entries}
        known = {path: probe.content for path, probe in probes.items() if probe and probe.content}
        return {**known, **contents([path for path in probes if path not in known])}

    def _was_read_otherwise(self, probe: Probe) -> bool:
        """Whether version 0.1 read other clips: it ignored mirroring, pixel shapes and varying rates."""
        by_time = probe.times is not None and self.options.clip.fps is not None
        return by_time or not probe.as_stored

    def _require_unchanged(self, path: Path, probe: Probe) -> None:
        """Raise VideoError if the content of a file has changed since the dataset was made."""
        before = self._stamps.get(path)
        if before is None:
            return
        try:
            stamp = file_stamp(path)
            if stamp == before:
                return
            # Other times alone are no change: a copy or `touch` sets them.
            if stamp[0] == before[0] and probe.content in ("", content_hash(path)):
                self._stamps[path] = stamp
                return
        except OSError:
            return  # reading the file raises the error
        raise VideoError(
            path, "it has changed since the dataset was made", "Do not change files in use."
        )

    def _motion_of(
        self, entry: Entry, probe: Probe, indices: np.ndarray, video: np.ndarray
    ) -> float | None:
        if self._motion is None:
            return None
        clip = self.options.clip
        cut = [indices.tolist(), clip.height_width, clip.resize]
        content = probe.content or contents([entry.path])[entry.path]
        return self._motion.score([content, cut], video)

    def _report_problems(self, where: str) -> None:
        """Log one message for each broken file and one for all missing files. Raises UserError if `strict`."""
        messages = [f"{where}: skipped {name}: {why}" for name, why in self.broken.items()]
        if self.missing:
            messages.append(
                f"{where}: {len(self.missing)} listed files do not exist: {named(self.missing)}"
            )
        if messages and self.options.strict:
            raise UserError(
                "\n".join(messages) + "\nRepair them, or set strict to false to skip them."
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

    def _empty_message(self, where: str, num_entries: int, num_chosen: int, num_listed: int) -> str:
        if num_entries and not num_chosen:
            return (
                f"{where}: none of its {num_entries} videos is in split "
                f"{self.options.split!r} with val_fraction {self.options.val_fraction}. "
                "Change val_fraction, or give a split list."
            )
        return (
            f"{where}: no video is left of {num_listed}: {len(self.missing)} missing, "
            f"{len(self.broken)} broken, {len(self.too_short)} too short for "
            f"{self.options.clip.num_frames} frames. If they are too short, use shorter clips or "
            "pad them (short: pad). Otherwise check the paths and the files."
        )


def _locate(
    entries: Entries, rows: NDArray[np.int64], where: str
) -> tuple[Entries, DistinctFiles, NDArray[np.bool_]]:
    """Find the files of rows. Returns the entries with corrected paths, the files, and which of these exist (N,)."""
    files = DistinctFiles(entries, rows)
    is_there = np.array([os.path.exists(entry.path) for entry in files.entries], bool)
    absent = entries.table.column("path").take(pa.array(files.first_rows[~is_there]))
    others = other_spellings(entries.root, absent.to_pylist())
    if others:
        logger.warning(
            "%s: %d files have another spelling on disk (accents in another Unicode form, or outer spaces): %s",
            *(where, len(others), named([*others.values()])),
        )
        entries = entries.respelled(others)
        files = DistinctFiles(entries, rows)
        is_there = np.array([os.path.exists(entry.path) for entry in files.entries], bool)
    return entries, files, is_there


def _file_stamps(
    entries: Iterable[Entry],
) -> tuple[dict[Path, tuple[int, int, int]], dict[Path, str]]:
    """Size and times of each file, and the errors of the others, such as folders without pictures."""
    stamps, broken = {}, {}
    for entry in entries:
        try:
            stamps[entry.path] = file_stamp(entry.path)
        except VideoError as error:
            broken[entry.path] = error.reason
        except OSError as error:
            broken[entry.path] = str(error.strerror or error)
    return stamps, broken


def named(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _of_split(fractions: NDArray[np.float64], split: Split, val_fraction: float) -> Any:
    """For each fraction (N,), whether it belongs to the split: "val" has those below `val_fraction`."""
    if split == "all":
        return np.ones(fractions.shape, bool)
    return (fractions < val_fraction) == (split == "val")


def _require_one_there(videos: Videos, where: str) -> None:
    """Raise UserError if none of 16 videos exists. Files of a large manifest have not been looked at before."""
    some = [videos[i * len(videos) // 16][0].path for i in range(16)]
    if not any(map(os.path.exists, some)):
        raise UserError(
            f"{where}: none of its videos seems to exist, e.g. {some[0]}. Check the paths, and the folder that "
            "they are relative to (video_root)."
        )


def read_clip(
    path: Path, cut: Cut, clip: ClipSpec, *, probe: Probe, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read and resize the frames of a clip (T, height, width, 3). Black ones replace missing frames on request."""
    if is_pictures(path):
        video = resize_frames(read_pictures(path, cut.indices), clip.height_width, clip.resize)
    else:
        video = read_frames(
            path,
            cut.indices,
            probe=probe,
            size=clip.height_width,
            resize=clip.resize,
            max_pixels=max_pixels,
        )
    if clip.short == "black":
        video[cut.num_there :] = 0
    return video
