"""Rows of systems from elsewhere: a folder of videos that any program wrote. Pipelines are in `pipelines.py`.

Their training is unknown to arvid, so they have no setting: tables show them as reference rows and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._files import Entry, named, probe_files
from arvid.data.clips import ClipSpec, resize_frames
from arvid.data.video import VideoError, read_video
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import videos_in
from arvid.evaluation.row_kinds import Row, Videos
from arvid.files import sha256_json

NO_SETTING: dict[str, Any] = {"setting": {}, "setting_hash": sha256_json({})}
"""The description of rows whose training arvid knows nothing of."""


class VideosRow(Row):
    """The videos in a folder.

    For generation they are taken in the order of their paths; for prediction and reconstruction the one with the
    name of a real clip (without ending) is its counterpart. Of longer videos the first frames count, and another
    size is brought to the protocol's as the real clips' is; the row's options say so.

    Args:
        folder: looked through with the folders within.
        name: of the row.
        protocol: how they will be scored.
        dataset: the real clips.

    Raises UserError for fewer videos than the protocol asks for, videos that are corrupt, too short or see-through,
    and videos of unlike lengths or sizes.
    """

    def __init__(
        self, folder: Path, name: str, *, protocol: Protocol, dataset: VideoDataset
    ) -> None:
        self.clip = clip_of(protocol)
        paths = videos_in(folder) if folder.is_dir() else []
        num = protocol.available_clips(dataset)
        if len(paths) < num * protocol.folds:
            raise UserError(
                f"{folder} holds {len(paths)} videos; protocol {protocol.name} asks for "
                f"{num * protocol.folds} ({protocol.folds} x {num}). With --num-clips it is another protocol."
            )
        self.by_name = _by_name(folder, paths) if protocol.task != "generation" else {}
        if self.by_name and num * protocol.folds > len(dataset):
            raise UserError(
                f"Protocol {protocol.name} uses real clips several times, which names cannot tell apart. "
                f"Ask for {len(dataset)} clips at most (--num-clips)."
            )
        taken = paths if self.by_name else paths[: num * protocol.folds]
        self.batches = protocol.in_batches([taken[i : i + num] for i in range(0, len(taken), num)])
        super().__init__(name, {}, {"videos": _describe(folder, taken, self.clip)})
        self._files = [[p.relative_to(folder).as_posix(), *_stamp(p)] for p in taken]

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        paths = self.batches[batch][: len(clips)]
        if self.by_name:
            paths = [self._counterpart(clip) for clip in clips]
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._read, paths)))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": sha256_json(self._files)}

    def _counterpart(self, clip: Clip) -> Path:
        stem = _stem(clip.name)
        if stem not in self.by_name:
            raise UserError(f"There is no video called {stem}, for the real clip {clip.name}.")
        return self.by_name[stem]

    def _read(self, path: Path) -> np.ndarray:
        frames = read_video(path, max_frames=self.clip.num_frames).frames
        return resize_frames(frames, self.clip.height_width, self.clip.resize)


def clip_of(protocol: Protocol) -> ClipSpec:
    """How a protocol cuts its clips. Raises UserError where it leaves that to a run's setting."""
    if protocol.clip is None:
        raise UserError(
            f"Protocol {protocol.name} leaves the clips to a run's setting, which this row has none of."
        )
    return protocol.clip


def _by_name(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = _stem(path.name)
        if stem in found:
            raise UserError(
                f"{folder}: two videos are called {stem}, so names do not tell them apart."
            )
        found[stem] = path
    return found


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _describe(folder: Path, paths: Sequence[Path], clip: ClipSpec) -> str:
    """What the videos are like, in words, once it is sure that they may be scored."""
    probes, broken = probe_files([Entry(p, p.relative_to(folder).as_posix()) for p in paths])
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} videos cannot be read: "
            + "; ".join(f"{name}: {why}" for name, why in list(broken.items())[:5])
        )
    see_through = [p.name for p in paths if _is_see_through(p)]
    if see_through:
        raise UserError(f"{folder}: lay these on a background first: {named(see_through)}.")
    lengths = {probe.num_frames for probe in probes.values()}
    sizes = {(probe.height, probe.width) for probe in probes.values()}
    if len(lengths) > 1 or len(sizes) > 1:
        raise UserError(
            f"{folder}: its videos are of unlike lengths or sizes: {min(lengths)} to {max(lengths)} frames, "
            + ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:5])
            + " (height x width). Make them alike."
        )
    (length,), (size,) = lengths, sizes
    if length < clip.num_frames:
        raise UserError(
            f"{folder}: its videos have {length} frames; the protocol looks at {clip.num_frames}."
        )
    cut = f", the first {clip.num_frames} taken" if length > clip.num_frames else ""
    height, width = clip.height_width
    resized = f", brought to {height}x{width}" if size != (height, width) else ""
    return f"{len(paths)} of {length} frames{cut}, {size[0]}x{size[1]}{resized}"


def _is_see_through(path: Path) -> bool:
    """Whether its pixels have an alpha channel, which reading would drop."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            alpha_mode = stream.metadata.get("alpha_mode")  # VP8 and VP9 keep it beside the picture
            pixels = stream.codec_context.format
            return alpha_mode == "1" or bool(
                pixels and any(component.is_alpha for component in pixels.components)
            )
    except av.error.FFmpegError as error:
        raise VideoError(path, str(error)) from error
