"""Samples the videos of the suite: resumable, split over processes, the same for any number of processes.

Every video is sampled alone. Its seed depends only on the run's seed, the prompt and the index. The manifest is outside
the folder of videos, since VBench derives the file name pattern from the folder's first entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from arvid.data.video import VideoError, probe_video, write_video
from arvid.progress import Bar
from arvid.suites.vbench.suite import Take

VideoSampler = Callable[[str, int], UInt8[np.ndarray, "t h w 3"]]
"""Maps a text and a seed to one video. Equal texts and seeds must give equal videos."""


def take_seed(take: Take, seed: int = 0) -> int:
    """Seed of one video: 63 bits of a hash of the run's seed, the suite's text and the index."""
    digest = hashlib.sha256(f"{seed}\0{take.prompt.text}\0{take.index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: seeds must fit a signed int64


def sample_suite(
    takes: Sequence[Take],
    sampler: VideoSampler,
    folder: Path,
    *,
    texts: Mapping[str, str] | None = None,
    fps: float = 8.0,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> int:
    """Sample the videos that are missing or unreadable. Returns their number.

    Args:
        takes: the wanted videos; see `arvid.suites.vbench.suite.takes`.
        sampler: makes the videos.
        folder: folder of the videos, without other files.
        texts: the suite's text -> rewritten prompt. File names keep the suite's text.
        fps: of the files. Scores depend on it: dynamic degree uses about 8 frames per second.
        seed: of the run.
        shard: index of this process and number of processes.
        progress: show a progress bar over the videos.
    """

    def make(take: Take) -> UInt8[np.ndarray, "t h w 3"]:
        text = take.prompt.text if texts is None else texts[take.prompt.text]
        return sampler(text, take_seed(take, seed))

    mine = takes[shard[0] :: shard[1]]
    return write_missing(
        {folder / take.file: partial(make, take) for take in mine}, fps, progress=progress
    )


def write_missing(
    videos: Mapping[Path, Callable[[], UInt8[np.ndarray, "t h w 3"]]],
    fps: float,
    *,
    progress: bool = True,
) -> int:
    """Make and write the videos whose files are missing or unreadable. Returns their number."""
    num_made = 0
    for path, make in Bar(videos.items(), "videos", unit="video", hidden=not progress):
        if not _is_readable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, make(), fps)
            num_made += 1
    return num_made


def _is_readable(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        probe_video(path)
    except VideoError:
        return False
    return True
