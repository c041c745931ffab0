"""Checks of the clips before training: clips of one colour, repeated frames, tokens that are not of unit variance.

Training on such clips raises no error, but its numbers mean nothing.
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
"""Number of clips that are checked, evenly spaced over the set."""
TOLERANCE = 2
"""Pixels count as equal up to this difference, of 255 levels: codecs and resizing change pixels a little."""
MAX_EQUAL = 0.25
"""Share of repeated frames above which there is a warning. Videos with doubled frames have half or more."""
STD_RANGE = (0.8, 1.2)
"""Accepted standard deviation of continuous tokens. Noise schedules and heads are made for 1."""

Tokens = Callable[[int], tuple[Tensor, Tensor | None]]
"""Clip index -> its continuous tokens (posterior means), and their standard deviations if tokens are drawn."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Result of checking some clips of a set."""

    name: str
    """Name of the set."""
    num_clips: int
    """Clips in the whole set."""
    clip_shape: tuple[int, int, int]
    """Frames, height and width."""
    looked_at: int
    """Clips that were checked."""
    constant: tuple[str, ...] | None
    """Names of the clips of a single colour. None for a set of tokens, without frames."""
    equal_frames: float | None
    """Share of frames, in the other clips, that repeat the frame before. None if there are no frames."""
    token_std: float | None
    """Standard deviation of the tokens. None for discrete tokens, or if tokens were not checked."""

    @property
    def warnings(self) -> list[str]:
        """Faults and what to do, one or two sentences each. Empty if there are none."""
        found = []
        if self.constant:
            named = ", ".join(self.constant[:5])
            found.append(
                f"{len(self.constant)} of {self.looked_at} clips of {self.name} are of one colour throughout "
                f"({named}). Leave them out, or check how the videos were made."
            )
        if self.equal_frames is not None and self.equal_frames > MAX_EQUAL:
            found.append(
                f"{self.equal_frames:.0%} of the frames in the clips of {self.name} are equal to the one before. "
                "Take frames at a lower rate (clip.fps), or leave short videos out (clip.short: drop)."
            )
        low, high = STD_RANGE
        if self.token_std is not None and not low <= self.token_std <= high:
            found.append(
                f"The tokens of {self.name} have a standard deviation of {self.token_std:.2f}; it should be {low} to "
                f"{high}. Train the tokenizer on such clips, or use another one."
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
    """Check some clips of a set, always the same ones.

    Args:
        name: name of the set in messages.
        dataset: the set.
        clip_shape: frames, height and width of its clips.
        tokens: returns the tokens of a clip. None: do not check tokens.
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
        token_std=None if tokens is None else _token_std([tokens(i) for i in indices]),
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
    return bool(np.ptp(video.reshape(-1, 3), axis=0).max() <= TOLERANCE)


def equal_frames(video: UInt8[np.ndarray, "t h w 3"]) -> Bool[np.ndarray, " t"]:
    """For each frame after the first (T - 1,), whether it equals the frame before."""
    # int16, because differences of uint8 would wrap around.
    change = np.abs(np.diff(video.astype(np.int16), axis=0))
    equal: Bool[np.ndarray, " t"] = change.max(axis=(1, 2, 3)) <= TOLERANCE
    return equal


def _token_std(tokens: list[tuple[Tensor, Tensor | None]]) -> float:
    """Standard deviation over all values of all tokens, as they are drawn from the posterior."""
    values = torch.stack([mean for mean, _ in tokens]).double()
    variance = values.var(unbiased=False)
    # Law of total variance: variance of the means plus mean of the variances.
    deviations = [deviation for _, deviation in tokens if deviation is not None]
    if deviations:
        variance = variance + torch.stack(deviations).double().square().mean()
    return float(variance.sqrt())
