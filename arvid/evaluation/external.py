"""Rows of external systems: a folder of videos that any program wrote. For diffusers pipelines see `pipelines.py`.

arvid does not know their training, so they have no setting. Tables show them as reference rows and say so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._entries import Entry
from arvid.data._files import named, probe_files, read_clip
from arvid.data.clips import ClipSpec
from arvid.data.pictures import frame_files, has_alpha, is_pictures
from arvid.data.video import Probe, VideoError
from arvid.evaluation.given_videos import Given, cut_given, describe_given, pair_by_name
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import videos_in
from arvid.evaluation.row_kinds import Row, Videos
from arvid.files import sha256_json

NO_SETTING: dict[str, Any] = {"setting": {}, "setting_hash": sha256_json({})}
"""Description of rows whose training arvid does not know."""


class VideosRow(Row):
    """The videos in a folder: files, or folders of frames.

    A video belongs to the real clip with the same relative path (without suffix), or the same name if names are unique.
    Predictions and reconstructions need one video per real clip. For generation, if a real clip has none, the videos
    are used in the order of their paths.

    `arvid.evaluation.given_videos` describes how videos are cut. Other sizes are resized like real clips. The row's
    options state what was done.

    Args:
        folder: searched recursively.
        name: of the row.
        protocol: the protocol that will score them.
        dataset: the real clips.

    Raises UserError if there are too few videos, if some are corrupt, too short or transparent, or if their lengths,
    rates or sizes differ.
    """

    def __init__(
        self, folder: Path, name: str, *, protocol: Protocol, dataset: VideoDataset
    ) -> None:
        self.clip = clip_of(protocol)
        if protocol.trajectories > 1:
            raise UserError(
                f"Protocol {protocol.name} takes the best of {protocol.trajectories} clips; a folder has one for each "
                "real clip. Write a protocol with it as `base` and `trajectories: 1` (docs/protocols.md)."
            )
        paths = videos_in(folder) if os.path.isdir(folder) else []
        num = protocol.available_clips(dataset)
        if len(paths) < num * protocol.folds:
            raise UserError(
                f"{folder} holds {len(paths)} videos; protocol {protocol.name} asks for "
                f"{num * protocol.folds} ({protocol.folds} x {num}). Use fewer with --num-clips; the values "
                "then get their own columns."
            )
        folds = [protocol.choose(dataset, fold)[0] for fold in range(protocol.folds)]
        taken = _choose(folder, paths, folds, protocol, dataset)
        probes = _probe(folder, taken)
        cuts = [cut_given(path, probes[path], real, protocol, dataset) for path, real in taken]
        described = describe_given(folder, cuts, protocol)
        ordered = iter(cuts)
        self.batches = protocol.in_batches([[next(ordered) for _ in fold] for fold in folds])
        super().__init__(name, {}, {"videos": described})
        files = dict.fromkeys(path for path, _ in taken)
        self._files = [
            [path.relative_to(folder).as_posix(), *_stamp(path), probes[path].content]
            for path in files
        ]

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._read, self.batches[batch][: len(clips)])))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": sha256_json(self._files)}

    def _read(self, given: Given) -> np.ndarray:
        return read_clip(given.path, given.cut, self.clip, probe=given.probe)


def clip_of(protocol: Protocol) -> ClipSpec:
    """How a protocol cuts its clips. Raises UserError if it takes that from a run's setting."""
    if protocol.clip is None:
        raise UserError(
            f"Protocol {protocol.name} cuts clips as a run's setting says, and this row has no setting. "
            "Choose a protocol with a `clip` of its own."
        )
    return protocol.clip


def _choose(
    folder: Path,
    paths: Sequence[Path],
    folds: Sequence[Sequence[int]],
    protocol: Protocol,
    dataset: VideoDataset,
) -> list[tuple[Path, int | None]]:
    """The video for each real clip of all folds, with the clip's index if the video was made for this clip."""
    indices = [index for fold in folds for index in fold]
    is_repeated = len(indices) > len(dataset)  # then a name belongs to several wanted videos
    if is_repeated and protocol.task != "generation":
        raise UserError(
            f"Protocol {protocol.name} uses real clips several times, so names do not identify videos. "
            f"Use at most {len(dataset)} clips (--num-clips)."
        )
    found = None if is_repeated else pair_by_name(folder, paths, indices, dataset)
    if isinstance(found, list):
        return list(zip(found, indices, strict=True))
    if isinstance(found, str) and protocol.task != "generation":
        raise UserError(found)
    return [(path, None) for path in paths[: len(indices)]]


def _probe(folder: Path, taken: Sequence[tuple[Path, int | None]]) -> dict[Path, Probe]:
    """Length, rate and size of each video. Raises UserError for unreadable and for transparent videos."""
    paths = list(dict.fromkeys(path for path, _ in taken))
    probes, broken = probe_files([Entry(p, p.relative_to(folder).as_posix()) for p in paths])
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} videos cannot be read: "
            + "; ".join(f"{name}: {why}" for name, why in list(broken.items())[:5])
        )
    if see_through := [p.name for p in paths if _is_transparent(p)]:
        raise UserError(
            f"{folder}: these videos are transparent, put them on a background first: {named(see_through)}."
        )
    return probes


def _is_transparent(path: Path) -> bool:
    """Whether the first frame has transparent pixels. Reading would drop the alpha channel."""
    if is_pictures(path):
        return has_alpha(path)
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 store alpha separately
                return True
            pixels = stream.codec_context.format
            if not (pixels and any(component.is_alpha for component in pixels.components)):
                return False
            frame = next(container.decode(stream))  # GIF always has an alpha channel
            return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())
    except av.error.FFmpegError as error:
        raise VideoError(path, str(error)) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Size and newest modification time of a file, or of the frames in a folder."""
    files = frame_files(path) if os.path.isdir(path) else [path]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
