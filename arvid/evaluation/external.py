"""Rows of systems from elsewhere: a folder of videos that any program wrote. Pipelines are in `pipelines.py`.

Their training is unknown to arvid, so they have no setting: tables show them as reference rows and say so.
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
"""The description of rows whose training arvid knows nothing of."""


class VideosRow(Row):
    """The videos in a folder: files, or folders of frames.

    A video that bears the path of a real clip below its folder (without ending), or its name where that is enough to
    tell them apart, is its counterpart. Predictions and reconstructions must have one for each clip. For generation,
    where not every real clip has one, videos are taken in the order of their paths.

    How they are cut is said in `arvid.evaluation.given_videos`. Another size is brought to the protocol's as the real
    clips' is. The row's options say what was done.

    Args:
        folder: looked through with the folders within.
        name: of the row.
        protocol: how they will be scored.
        dataset: the real clips.

    Raises UserError for fewer videos than the protocol asks for, videos that are corrupt, too short or see-through,
    and videos of unlike lengths, rates or sizes.
    """

    def __init__(
        self, folder: Path, name: str, *, protocol: Protocol, dataset: VideoDataset
    ) -> None:
        self.clip = clip_of(protocol)
        paths = videos_in(folder) if os.path.isdir(folder) else []
        num = protocol.available_clips(dataset)
        if len(paths) < num * protocol.folds:
            raise UserError(
                f"{folder} holds {len(paths)} videos; protocol {protocol.name} asks for "
                f"{num * protocol.folds} ({protocol.folds} x {num}). With --num-clips it is another protocol."
            )
        folds = [protocol.choose(dataset, fold)[0] for fold in range(protocol.folds)]
        taken = _choose(folder, paths, folds, protocol, dataset)
        probes = _probe(folder, taken)
        cuts = [cut_given(path, probes[path], real, protocol, dataset) for path, real in taken]
        described = describe_given(folder, cuts, protocol)
        rest = iter(cuts)
        self.batches = protocol.in_batches([[next(rest) for _ in fold] for fold in folds])
        super().__init__(name, {}, {"videos": described})
        files = dict.fromkeys(path for path, _ in taken)
        self._files = [[p.relative_to(folder).as_posix(), *_stamp(p)] for p in files]

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._read, self.batches[batch][: len(clips)])))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": sha256_json(self._files)}

    def _read(self, given: Given) -> np.ndarray:
        return read_clip(given.path, given.cut, self.clip, probe=given.probe)


def clip_of(protocol: Protocol) -> ClipSpec:
    """How a protocol cuts its clips. Raises UserError where it leaves that to a run's setting."""
    if protocol.clip is None:
        raise UserError(
            f"Protocol {protocol.name} leaves the clips to a run's setting, which this row has none of."
        )
    return protocol.clip


def _choose(
    folder: Path,
    paths: Sequence[Path],
    folds: Sequence[Sequence[int]],
    protocol: Protocol,
    dataset: VideoDataset,
) -> list[tuple[Path, int | None]]:
    """For each real clip of all folds its video, with the clip's index where the video was made for that very one."""
    indices = [index for fold in folds for index in fold]
    is_repeated = len(indices) > len(dataset)
    if is_repeated and protocol.task != "generation":
        raise UserError(
            f"Protocol {protocol.name} uses real clips several times, which names cannot tell apart. "
            f"Ask for {len(dataset)} clips at most (--num-clips)."
        )
    found = None if is_repeated else pair_by_name(folder, paths, indices, dataset)
    if isinstance(found, list):
        return list(zip(found, indices, strict=True))
    if isinstance(found, str) and protocol.task != "generation":
        raise UserError(found)
    return [(path, None) for path in paths[: len(indices)]]


def _probe(folder: Path, taken: Sequence[tuple[Path, int | None]]) -> dict[Path, Probe]:
    """What the videos are like. Raises UserError for those that cannot be read, and for see-through ones."""
    paths = list(dict.fromkeys(path for path, _ in taken))
    probes, broken = probe_files([Entry(p, p.relative_to(folder).as_posix()) for p in paths])
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} videos cannot be read: "
            + "; ".join(f"{name}: {why}" for name, why in list(broken.items())[:5])
        )
    see_through = [p.name for p in paths if _is_see_through(p)]
    if see_through:
        raise UserError(f"{folder}: lay these on a background first: {named(see_through)}.")
    return probes


def _is_see_through(path: Path) -> bool:
    """Whether pixels of the first frame are see-through, which reading would drop."""
    if is_pictures(path):
        return has_alpha(path)
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 keep it beside the picture
                return True
            pixels = stream.codec_context.format
            if not (pixels and any(component.is_alpha for component in pixels.components)):
                return False
            frame = next(container.decode(stream))  # GIF always has a channel for it
            return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())
    except av.error.FFmpegError as error:
        raise VideoError(path, str(error)) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, or of a folder's frames."""
    files = frame_files(path) if os.path.isdir(path) else [path]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
