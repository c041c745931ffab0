"""Order of the training clips: a function from a position to the index of a clip. It depends on the seed alone.

Positions count clips from the start of the training, over all processes. Step s has positions s * B to (s + 1) * B - 1,
where B is the global batch size. An order is a function of the position, so a resumed run continues exactly, and the
clips of a step depend neither on processes nor on workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

MAX_LANES = 64
"""Maximum number of lanes of `WindowOrder`. With more nodes than lanes, several nodes read the same shards."""


class Order(Protocol):
    """Position -> index of a clip."""

    def __call__(self, position: int) -> int: ...


class WholeOrder:
    """A new random permutation of all clips in each epoch.

    Args:
        num_clips: number of clips in the set.
        seed: seed of the permutations.
    """

    def __init__(self, num_clips: int, seed: int) -> None:
        self.num_clips = num_clips
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_clips)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.num_clips)
        return int(self._order[offset])


class WindowOrder:
    """Shards in random order, and their clips shuffled inside windows of a few shards.

    A step is divided into lanes: equal runs of positions. In each epoch the shards are permuted and divided among the
    lanes, in equal numbers of clips. A lane reads its clips window after window, each in random order. So a process
    reads only the shards of its lanes, each once per epoch. If the positions of a lane belong to two processes, both
    read its shards. Each epoch leaves out fewer clips than there are lanes; they differ from epoch to epoch.

    Args:
        num_clips: number of clips in the set.
        seed: seed of the permutations.
        clips_per_shard: clips per shard; the last shard may have fewer.
        window: size of a window, in shards. A step takes its clips from one window per lane.
        clips_per_step: global batch size. The number of lanes is its largest divisor up to `MAX_LANES`.
        prefetch: called with the shards of the next window of a lane when the lane begins a window.
    """

    def __init__(
        self,
        num_clips: int,
        seed: int,
        *,
        clips_per_shard: int,
        window: int,
        clips_per_step: int,
        prefetch: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.num_clips = num_clips
        self.seed = seed
        self.clips_per_shard = clips_per_shard
        self.clips_per_step = clips_per_step
        self.num_lanes = _num_lanes(clips_per_step, num_clips)
        self.lane_size = num_clips // self.num_lanes
        self.window_size = window * clips_per_shard
        self._prefetch = prefetch
        self._windows: dict[int, tuple[int, int, Indices]] = {}
        self._epoch, self._shards, self._ends = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def __call__(self, position: int) -> int:
        per_lane = self.clips_per_step // self.num_lanes
        step, offset = divmod(position, self.clips_per_step)
        lane, offset = divmod(offset, per_lane)
        epoch, offset = divmod(step * per_lane + offset, self.lane_size)
        window, offset = divmod(offset, self.window_size)
        return int(self._window(lane, epoch, window)[offset])

    def _window(self, lane: int, epoch: int, window: int) -> Indices:
        """Clips of a lane's window, shuffled."""
        kept = self._windows.get(lane)
        if kept is None or kept[:2] != (epoch, window):
            clips = self._clips(lane, epoch, window)
            generator = np.random.default_rng([self.seed, epoch, lane, window])
            kept = self._windows[lane] = epoch, window, generator.permutation(clips)
            if self._prefetch is not None:
                last = (window + 1) * self.window_size >= self.lane_size
                after = (epoch + 1, 0) if last else (epoch, window + 1)
                shards = self._clips(lane, *after) // self.clips_per_shard
                self._prefetch(list(dict.fromkeys(shards.tolist())))
        return kept[2]

    def _clips(self, lane: int, epoch: int, window: int) -> Indices:
        """Clips of a lane's window, in the order of the shards."""
        self._begin(epoch)
        first = window * self.window_size
        last = min(first + self.window_size, self.lane_size)
        # A slot is an index into the clips of the permuted shards, one shard after another. `_ends` are their ends.
        slots = np.arange(first, last) + lane * self.lane_size
        shards = np.searchsorted(self._ends, slots, side="right")
        before_end = self._ends[shards] - slots
        numbers = self._shards[shards]
        clips: Indices = self._shard_ends(numbers) - before_end
        return clips

    def _shard_ends(self, numbers: Indices) -> Indices:
        """Index of the last clip of each shard, plus one."""
        ends: Indices = np.minimum((numbers + 1) * self.clips_per_shard, self.num_clips)
        return ends

    def _begin(self, epoch: int) -> None:
        """Permute the shards for an epoch."""
        if epoch == self._epoch:
            return
        num_shards = -(-self.num_clips // self.clips_per_shard)
        self._epoch = epoch
        self._shards = np.random.default_rng([self.seed, epoch]).permutation(num_shards)
        starts = self._shards * self.clips_per_shard
        self._ends = np.cumsum(self._shard_ends(self._shards) - starts)


def _num_lanes(clips_per_step: int, num_clips: int) -> int:
    most = min(MAX_LANES, num_clips)
    return max(n for n in range(1, most + 1) if clips_per_step % n == 0)
