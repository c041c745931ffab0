"""Draws the videos of the suite: resumable, sharded over processes, the same for any number of them.

Every video is drawn alone, with a seed that depends on the run's seed, the prompt and the index and on nothing else.
What they were drawn from stands in a file beside the folder of videos, which holds videos only: VBench takes its first
entry for the pattern of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from arvid.data.video import VideoError, probe_video, write_video
from arvid.suites.vbench.suite import Take

VideoSampler = Callable[[str, int], UInt8[np.ndarray, "t h w 3"]]
"""Text and seed to one video. The same text and seed give the same video."""


def take_seed(take: Take, seed: int = 0) -> int:
    """Seed of one video: 63 bits of a hash of the run's seed, the suite's text and the index."""
    digest = hashlib.sha256(f"{seed}\0{take.prompt.text}\0{take.index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
    """Draw the videos that are not there yet, or cannot be read, and return how many that were.

    Args:
        takes: see `arvid.suites.vbench.suite.takes`.
        sampler: draws them.
        folder: of the videos, and of nothing else.
        texts: rewritten prompts by the suite's texts, which stay the files' names.
        fps: of the files. VBench's scores depend on it: dynamic degree looks at about 8 frames a second.
        seed: of the run.
        shard: index of this process and their number: it draws every n-th video.
        progress: show a bar over the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    mine = takes[shard[0] :: shard[1]]
    for take in tqdm(mine, desc="vbench videos", disable=not progress, leave=False):
        path = folder / take.file
        if not _is_readable(path):
            text = take.prompt.text if texts is None else texts[take.prompt.text]
            write_video(path, sampler(text, take_seed(take, seed)), fps)
            drawn += 1
    return drawn


def _is_readable(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        probe_video(path)
    except VideoError:
        return False
    return True
