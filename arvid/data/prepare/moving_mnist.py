"""Moving MNIST (arXiv:1502.04681): two digits that move at constant speed and bounce off the edges.

As in the paper's released generator, a digit starts anywhere and moves in any direction, by a tenth of the free width
per frame. Where digits overlap, the brighter pixel wins. Clip i of a split is a pure function of (seed, split, i). The
random numbers differ from that generator's, so the training clips differ too. Training clips use the first five sixths
of MNIST's training digits, validation clips the last sixth. Test clips use the test digits, or are the published ones
if mnist_test_seq.npy exists. Files are lossless, at 25 fps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from arvid.data.pictures import DEFAULT_FPS
from arvid.data.prepare.digits import COUNTS, Array, Digits, read_digits
from arvid.data.prepare.lossless import write_lossless
from arvid.data.prepare.prepared import Item, Prepared
from arvid.data.prepare.sources import own_videos
from arvid.errors import UserError

STEP = 0.1
"""Displacement per frame, as a fraction of the free width."""
NUM_DIGITS = 2
TEST_SEQUENCES = "mnist_test_seq.npy"
Clip = tuple[Array, str]
"""Pixels (T, H, W), and a caption."""


def prepare(
    source: Path,
    out: Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    num_frames: int,
    size: int,
    seed: int,
) -> Prepared:
    """Render the clips.

    Args:
        source: see `facts.MOVING_MNIST`.
        out: the folder OUT.
        num_train, num_val, num_test: clips of each split. If test clips are published ones, these are the first.
        num_frames: frames of a clip. Published test clips have 20.
        size: height and width. Published test clips have 64.
        seed: seed of the rendering.

    Raises UserError if MNIST is missing, or the digits do not fit into the frame.
    """
    videos = own_videos(out)
    digits = read_digits(source)
    published = next(iter(sorted(source.rglob(TEST_SEQUENCES))), None) if source.is_dir() else None
    train = digits["train"]
    border = len(train.pictures) - len(train.pictures) // 6  # validation has the last sixth
    parts = {
        "train": (num_train, train.part(0, border)),
        "val": (num_val, train.part(border, len(train.pictures))),
        "test": (num_test, digits["test"]),
    }
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    for key, (split, (count, own)) in enumerate(parts.items()):
        if split == "test" and published:
            clips = published_clips(published, count)
        else:
            rngs = (np.random.default_rng([seed, key, i]) for i in range(count))
            clips = (render(own, rng, num_frames=num_frames, size=size) for rng in rngs)
        written = list(_write(clips, videos, split, count))
        items += written
        splits[split] = [item.name for item in written]
    differing = [
        f"MNIST has {len(digits[split].pictures):,} {split} digits here, not {expected:,}"
        for split, expected in COUNTS.items()
        if len(digits[split].pictures) != expected
    ]
    return Prepared(items=items, splits=splits, remarks=differing)


def _write(clips: Iterator[Clip], videos: Path, split: str, count: int) -> Iterator[Item]:
    progress = tqdm(clips, f"rendering {split}", count, unit="clip", delay=1, disable=None)
    for index, (pixels, caption) in enumerate(progress):
        name = f"{split}/{index:05d}.mp4"
        write_lossless(videos / name, np.repeat(pixels[..., None], 3, axis=3), DEFAULT_FPS)
        yield Item(name, caption)


def render(digits: Digits, rng: np.random.Generator, *, num_frames: int, size: int) -> Clip:
    """Render a clip uint8 (num_frames, size, size). Raises UserError if the digits are larger than the frame."""
    height, width = digits.pictures.shape[1:]
    if max(height, width) > size:
        raise UserError(f"Digits of {height}x{width} do not fit into frames of {size}x{size}.")
    chosen = rng.integers(len(digits.pictures), size=NUM_DIGITS)
    video = np.zeros((num_frames, size, size), np.uint8)
    for index in chosen:
        free = np.array([size - height, size - width])
        corners = (bounce(rng, num_frames) * free).astype(int)
        for frame, (y, x) in zip(video, corners, strict=True):
            covered = frame[y : y + height, x : x + width]
            np.maximum(covered, digits.pictures[index], out=covered)
    if digits.labels is None:
        return video, "two handwritten digits move"
    first, second = (int(digits.labels[index]) for index in chosen)
    return video, f"the handwritten digits {first} and {second} move"


def bounce(rng: np.random.Generator, num_frames: int) -> NDArray[np.float64]:
    """Positions (num_frames, 2) in [0, 1] of a point that moves at constant speed and bounces off the edges."""
    position = rng.random(2)
    angle = rng.uniform(0, 2 * np.pi)
    velocity = STEP * np.array([np.sin(angle), np.cos(angle)])
    found = np.empty((num_frames, 2))
    for frame in range(num_frames):
        position = position + velocity
        # As in the released generator, the point is clipped to the edge, not reflected.
        outside = (position < 0) | (position > 1)
        velocity = np.where(outside, -velocity, velocity)
        position = position.clip(0, 1)
        found[frame] = position
    return found


def published_clips(path: Path, count: int) -> Iterator[Clip]:
    """The first `count` published test clips. Their file is uint8 (20, 10000, 64, 64)."""
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Download it again.") from error
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise UserError(
            f"{path} should hold uint8 (T, N, H, W), not {frames.dtype} {frames.shape}."
        )
    for index in range(min(count, frames.shape[1])):
        yield np.ascontiguousarray(frames[:, index]), "two handwritten digits move"
