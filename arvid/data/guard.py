"""What is wrong with clips before anything is trained on them: constant ones, frames that repeat, tokens off scale.

None of it is an error to the training, which goes on to the end and gives numbers that mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from arvid.contracts import VideoDataset
from arvid.data.stand_ins import read_clip

NUM_CLIPS = 32
"""Clips that are looked at, evenly spread over the set."""
SAME = 2
"""Pixels that differ by so many of the 255 levels at most count as equal: codecs and resizing leave such traces."""
MOST_EQUAL = 0.25
"""Share of equal frames from which on it is worth a warning: videos whose frames were doubled have half or more."""
SPREADS = (0.8, 1.2)
"""Standard deviations of continuous tokens that count as about 1, which noise schedules and heads are made for."""

Tokens = Callable[[int], tuple[Tensor, Tensor | None]]
"""Clip's number -> its continuous tokens, and their standard deviations if they are drawn."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a look at some clips of a set shows."""

    name: str
    """Of the set."""
    num_clips: int
    """In the whole set."""
    clip_shape: tuple[int, int, int]
    """Frames, height and width."""
    looked_at: int
    constant: tuple[str, ...] | None
    """Names of clips that are of one colour throughout; None where the set has no frames but tokens."""
    equal_frames: float | None
    """Share of frames, in the other clips, that are equal to the one before; None where there are none."""
    spread: float | None
    """Standard deviation of the tokens; None where these are ids, or not asked for."""

    @property
    def warnings(self) -> list[str]:
        """What is wrong and what to do, a sentence or two each; empty if nothing is."""
        found = []
        if self.constant:
            named = ", ".join(self.constant[:5])
            found.append(
                f"{len(self.constant)} of {self.looked_at} clips of {self.name} are of one colour throughout "
                f"({named}). Leave them out, or look at how the videos were made."
            )
        if self.equal_frames is not None and self.equal_frames > MOST_EQUAL:
            found.append(
                f"{self.equal_frames:.0%} of the frames in the clips of {self.name} are equal to the one before. "
                "Take frames at a lower rate (clip.fps), or leave short videos out (clip.short: drop)."
            )
        low, high = SPREADS
        if self.spread is not None and not low <= self.spread <= high:
            found.append(
                f"The tokens of {self.name} have a standard deviation of {self.spread:.2f}; it should be {low} to "
                f"{high}. Train the tokenizer on such clips, or take another one."
            )
        return found


def look_at(
    name: str,
    dataset: VideoDataset,
    clip_shape: tuple[int, int, int],
    tokens: Tokens | None,
    *,
    frames: bool,
) -> Findings:
    """Look at some clips of a set, the same ones each time.

    Args:
        name: what messages call the set.
        dataset: the set.
        clip_shape: of its clips.
        tokens: gives the tokens of a clip, or None if they are not to be looked at.
        frames: whether its clips have frames.
    """
    total = len(dataset)
    indices = sorted({i * total // NUM_CLIPS for i in range(NUM_CLIPS)})
    constant, equal = _look_at_frames(dataset, indices) if frames else (None, None)
    return Findings(
        name=name,
        num_clips=total,
        clip_shape=clip_shape,
        looked_at=len(indices),
        constant=constant,
        equal_frames=equal,
        spread=None if tokens is None else _spread([tokens(i) for i in indices]),
    )


def _look_at_frames(
    dataset: VideoDataset, indices: list[int]
) -> tuple[tuple[str, ...], float | None]:
    constant: list[str] = []
    equal: list[Bool[np.ndarray, " t"]] = []
    for index in indices:
        clip, _ = read_clip(dataset, index)
        if is_constant(clip.video):
            constant.append(clip.name or str(index))
        else:
            equal.append(equal_frames(clip.video))
    pairs = np.concatenate(equal) if equal else np.empty(0)
    return tuple(constant), float(pairs.mean()) if len(pairs) else None


def is_constant(video: UInt8[np.ndarray, "t h w 3"]) -> bool:
    """Whether all pixels of all frames have the same colour."""
    return bool(np.ptp(video.reshape(-1, 3), axis=0).max() <= SAME)


def equal_frames(video: UInt8[np.ndarray, "t h w 3"]) -> Bool[np.ndarray, " t"]:
    """For each frame but the first (T - 1), whether it is equal to the one before."""
    change = np.abs(np.diff(video.astype(np.int16), axis=0))
    equal: Bool[np.ndarray, " t"] = change.max(axis=(1, 2, 3)) <= SAME
    return equal


def _spread(tokens: list[tuple[Tensor, Tensor | None]]) -> float:
    """Standard deviation over all numbers of all tokens as they are drawn."""
    values = torch.stack([mean for mean, _ in tokens]).double()
    variance = values.var(unbiased=False)
    deviations = [deviation for _, deviation in tokens if deviation is not None]
    if deviations:
        variance = variance + torch.stack(deviations).double().square().mean()
    return float(variance.sqrt())
