"""Videos that a program made for real clips: the match between both, and the frames that are scored.

- A video as long as the real video of its clip covers all of it (a reconstruction, or the real file itself). Frames are
  taken at the same times as in the real clip.
- Any other video starts where the clip starts. Its first frames are taken at the protocol's rate. A faster video skips
  frames. A slower one gives every frame, as a real video does. A video without a stated rate has the protocol's.

A protocol with `given_rate: keep` takes the first frames at any rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from arvid.contracts import UserError, VideoDataset
from arvid.data._files import Cut, FileDataset
from arvid.data.clips import ClipSpec, clip_indices, frames_needed
from arvid.data.pictures import states_rate
from arvid.data.video import Probe
from arvid.evaluation.protocols import Protocol

SAME_RATE = 0.05
"""Rates with a relative difference up to this count as equal: GIF has steps of 0.01 s, so 8 per second becomes 8.33."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A video and the frames that are taken from it."""

    path: Path
    probe: Probe
    cut: Cut
    is_whole: bool
    """Whether it is as long as the real video."""


def pair_by_name(
    folder: Path, paths: Sequence[Path], indices: Sequence[int], dataset: VideoDataset
) -> list[Path] | str:
    """The video of each real clip; or an error message if a clip has no video or two clips share one."""
    by_stem: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        parts = path.relative_to(folder).parts
        by_stem.setdefault(_stem(parts[-1]), []).append(parts)
    found: list[Path] = []
    clip_of: dict[Path, str] = {}
    for index in indices:
        name = _clip_name(dataset, index)
        nearest = _nearest(by_stem.get(_stem(name), []), PurePosixPath(name).parts)
        if not nearest:
            return f"{folder}: there is no video called {_stem(name)}, for the real clip {name}."
        path = folder.joinpath(*nearest[0])
        other = clip_of.setdefault(path, name)
        if len(nearest) > 1 or other != name:
            return (
                f"{folder}: the name of the real clip {name} does not identify its video: "
                + (
                    f"{path} also matches {other}."
                    if other != name
                    else f"{len(nearest)} videos match."
                )
                + " Put the videos into folders like those of the real clips."
            )
        found.append(path)
    return found


def _nearest(candidates: Sequence[tuple[str, ...]], name: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The candidates with most folders in common with `name`, counted from the file upwards.

    Among several, one with the same suffix wins.
    """
    shared = [_num_shared(parts[:-1], name[:-1]) for parts in candidates]
    nearest = [parts for parts, num in zip(candidates, shared, strict=True) if num == max(shared)]
    return [parts for parts in nearest if parts[-1] == name[-1]] or nearest


def _num_shared(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    same = [x == y for x, y in zip(reversed(a), reversed(b), strict=False)]
    return same.index(False) if False in same else len(same)


def _clip_name(dataset: VideoDataset, index: int) -> str:
    return dataset.clip_name(index) if isinstance(dataset, FileDataset) else dataset[index].name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def cut_given(
    path: Path, probe: Probe, real: int | None, protocol: Protocol, dataset: VideoDataset
) -> Given:
    """The frames to take from a video. `real` is the index of its real clip, or None.

    Raises UserError if it is too short.
    """
    assert protocol.clip is not None
    is_cut = protocol.given_rate == "cut"
    if is_cut and real is not None and isinstance(dataset, FileDataset):
        cut = dataset.cut(real)
        if _lasts_as_long(probe, cut):
            return Given(path=path, probe=probe, cut=_at_same_times(cut, probe), is_whole=True)
    return Given(path=path, probe=probe, cut=_from_start(path, probe, protocol), is_whole=False)


def _lasts_as_long(probe: Probe, real: Cut) -> bool:
    # Tolerance: three quarters of a frame of the slower video.
    difference = abs(probe.num_frames / probe.fps - real.num_frames / real.fps)
    return difference < 0.75 / min(probe.fps, real.fps)


def _at_same_times(real: Cut, probe: Probe) -> Cut:
    if probe.times is not None and probe.num_frames == real.num_frames:
        # variable frame rate, same number of frames: frame i is frame i of the real video
        indices = real.indices - real.first
    else:
        indices = np.round((real.indices - real.first) * (probe.fps / real.fps)).astype(np.int64)
    return dataclasses.replace(
        real,
        indices=np.minimum(indices, probe.num_frames - 1),
        first=0,
        num_frames=probe.num_frames,
        fps=probe.fps,
    )


def _from_start(path: Path, probe: Probe, protocol: Protocol) -> Cut:
    clip, fps = _clip_from_start(protocol), _rate(path, probe, protocol)
    indices = clip_indices(probe.num_frames, fps, clip, times=probe.times)
    if indices is None:
        raise UserError(_too_short(path, probe, fps, clip))
    return Cut(
        indices=indices,
        num_there=len(indices),
        first=0,
        num_frames=probe.num_frames,
        fps=probe.fps,
    )


def _clip_from_start(protocol: Protocol) -> ClipSpec:
    assert protocol.clip is not None
    return dataclasses.replace(protocol.clip, window="start", stride=1, short="drop")


def _rate(path: Path, probe: Probe, protocol: Protocol) -> float:
    """The rate that a video counts as having."""
    assert protocol.clip is not None
    wanted = protocol.clip.fps
    if wanted is None:
        return probe.fps
    is_same = abs(probe.fps / wanted - 1) <= SAME_RATE
    return (
        wanted if is_same or protocol.given_rate == "keep" or not states_rate(path) else probe.fps
    )


def _too_short(path: Path, probe: Probe, fps: float, clip: ClipSpec) -> str:
    needed = frames_needed(fps, clip)
    message = (
        f"{path}: videos have {probe.num_frames} frames; the protocol looks at {clip.num_frames}"
    )
    if needed == clip.num_frames:
        return f"{message}."
    return (
        f"{message} at {clip.fps:g} per second: {needed} frames of this video at {probe.fps:g} per second. A protocol "
        "with `given_rate: keep` takes every frame (docs/protocols.md)."
    )


def describe_given(folder: Path, given: Sequence[Given], protocol: Protocol) -> str:
    """One line that describes the videos and the frames taken from them.

    Raises UserError if videos that start with their clips differ in length, rate or size.
    """
    assert protocol.clip is not None
    partial = [g.probe for g in given if not g.is_whole]
    _require_alike(folder, partial)
    lengths = sorted({g.probe.num_frames for g in given})
    sizes = sorted({(g.probe.height, g.probe.width) for g in given})
    span = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
    height, width = protocol.clip.height_width
    resized = f", brought to {height}x{width}" if sizes != [(height, width)] else ""
    num_files = len({g.path for g in given})
    return f"{num_files} of {span} frames{_cut_in_words(given, protocol)}, {shown}{resized}"


def _require_alike(folder: Path, probes: Sequence[Probe]) -> None:
    lengths = sorted({probe.num_frames for probe in probes})
    sizes = sorted({(probe.height, probe.width) for probe in probes})
    rates = sorted({probe.fps for probe in probes})
    if len(lengths) > 1 or len(sizes) > 1:
        raise UserError(
            f"{folder}: its videos differ in length or size: {lengths[0]} to {lengths[-1]} frames, "
            + ", ".join(f"{height}x{width}" for height, width in sizes[:5])
            + " (height x width). Make them equal."
        )
    if rates and rates[-1] > rates[0] * (1 + SAME_RATE):
        raise UserError(
            f"{folder}: its videos have different rates: {rates[0]:g} to {rates[-1]:g} per second. Make them equal."
        )


def _cut_in_words(given: Sequence[Given], protocol: Protocol) -> str:
    assert protocol.clip is not None
    num_frames, wanted = protocol.clip.num_frames, protocol.clip.fps
    longer = [g for g in given if g.probe.num_frames != num_frames or _step(g) > 1]
    words = ""
    if whole := [g for g in longer if g.is_whole]:
        some = "" if len(whole) == len(given) else f" ({len(whole)} of them)"
        words += f" at {_rates(whole)} per second, cut like the real clips{some}"
    partial = [g for g in given if not g.is_whole]
    if not partial:
        return words
    words += _rate_in_words(partial, protocol) if wanted else ""
    if any(g.probe.num_frames > num_frames for g in partial):
        words += f", the first {num_frames} taken"
    return words


def _rate_in_words(given: Sequence[Given], protocol: Protocol) -> str:
    """How videos with another rate than the protocol's are treated."""
    assert protocol.clip is not None
    first, wanted = given[0], protocol.clip.fps
    assert wanted is not None
    if not states_rate(first.path):
        return ", which state no rate"
    rate = _rates(given)
    if abs(first.probe.fps / wanted - 1) <= SAME_RATE:
        return ""
    if protocol.given_rate == "keep":
        return f" at {rate} per second, taken as they are"
    if first.probe.fps > wanted:
        return f" at {rate} per second, taken at {wanted:g}"
    return f" at {rate} per second, slower than the protocol's {wanted:g}"


def _step(given: Given) -> float:
    indices = given.cut.indices
    return float(np.diff(indices).max()) if len(indices) > 1 else 1.0


def _rates(given: Sequence[Given]) -> str:
    rates = sorted({round(g.probe.fps, 2) for g in given})
    return f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
