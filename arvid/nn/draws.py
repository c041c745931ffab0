"""Random numbers of a batch whose clips may lie in several processes.

With one process `draw(sample, shape)` is `sample(shape)`. Where processes hold parts of a batch, each draws the
numbers of the whole batch from the same stream and takes those of its own clips. So losses do not depend on the
number of processes. What draws by torch's functions instead gets numbers of its process's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The clips of a batch that a process holds."""

    start: int
    """Index of the first in the batch."""
    count: int
    total: int
    """Clips of the batch."""
    counted: bool = True
    """False if there are fewer clips than processes and this one holds another's, so as to draw along with it."""


def part_of(total: int, index: int, num_parts: int) -> Part:
    """The part of `total` clips that the process `index` of `num_parts` holds; parts differ by one clip at most."""
    start, end = (total * i // num_parts for i in (index, index + 1))
    if start == end:
        return Part(0, 1, total, counted=False)
    return Part(start, end - start, total)


class SharedStream:
    """The random stream of batches of which this process holds a part: torch's own, as it is now.

    It must be in the same state in all processes.

    Args:
        device: that numbers are drawn on, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.part: Part | None = None
        self._devices = [device] if device.type == "cuda" else []
        self._keep()

    @contextmanager
    def active(self) -> Iterator[None]:
        """torch draws from this stream."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._keep()

    def _keep(self) -> None:
        cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._states = [torch.get_rng_state(), *cuda]


_stream: SharedStream | None = None


def share(stream: SharedStream | None, part: Part | None = None) -> None:
    """Draw from a stream the numbers of a batch of which this process holds a part; None ends that."""
    global _stream
    _stream = stream
    if stream is not None:
        stream.part = part


def counted_clips(num: int) -> int:
    """Clips of a batch that count in this process: `num`, or 0 if they are held by another process too."""
    return num if _stream is None or _part().counted else 0


def draw(sample: Callable[[Sequence[int]], Tensor], shape: Sequence[int], axis: int = 0) -> Tensor:
    """Random numbers of a shape whose `axis` runs over clips, or over the rows of one clip after another's."""
    if _stream is None:
        return sample(shape)
    part, whole = _part(), list(shape)
    rows, rest = divmod(shape[axis], part.count)
    assert not rest, f"{shape} has no whole number of rows for each of {part.count} clips"
    whole[axis] = rows * part.total
    with _stream.active():
        return sample(whole).narrow(axis, rows * part.start, rows * part.count)


def draw_once(sample: Callable[[], T]) -> T:
    """A random number that all clips of a batch have in common."""
    if _stream is None:
        return sample()
    with _stream.active():
        return sample()


def randn_like(x: Tensor, axis: int = 0) -> Tensor:
    """`torch.randn_like` of a tensor whose `axis` runs over clips, or over their rows."""
    if _stream is None:
        return torch.randn_like(x)
    return draw(lambda shape: x.new_empty(shape).normal_(), x.shape, axis)


class Dropout(nn.Dropout):
    """`nn.Dropout` of tensors whose first axis runs over clips, or over their rows."""

    def forward(self, x: Tensor) -> Tensor:
        if _stream is None or not self.training or not self.p:
            out: Tensor = super().forward(x)
            return out
        return x * draw(lambda shape: F.dropout(x.new_ones(shape), self.p), x.shape)


def _part() -> Part:
    assert _stream is not None
    assert _stream.part is not None
    return _stream.part
