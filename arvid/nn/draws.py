"""Random numbers for a batch that may be divided over several processes.

With one process `draw(sample, shape)` is `sample(shape)`. If processes hold parts of a batch, each process draws the
numbers of the whole batch from the same stream and keeps the numbers of its own clips. So losses do not depend on the
number of processes. Code that calls torch's functions directly gets different numbers in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The clips of a batch in one process."""

    start: int
    """Index of the first clip in the batch."""
    count: int
    """Number of clips."""
    total: int
    """Clips of the whole batch."""
    counted: bool = True
    """Whether the clips count in means. False in a process without own clips: it draws for a copy of another's clip."""


def part_of(total: int, index: int, num_parts: int) -> Part:
    """The part of `total` clips in process `index` of `num_parts`. Parts differ by at most one clip."""
    start, end = (total * i // num_parts for i in (index, index + 1))
    if start == end:
        return Part(0, 1, total, counted=False)
    return Part(start, end - start, total)


class SharedStream:
    """The random stream of divided batches, which starts as a copy of torch's generators.

    These generators must have the same state in all processes.

    Args:
        device: device of the numbers, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.part: Part | None = None
        self._devices = [device] if device.type == "cuda" else []
        self._keep()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block, torch draws from this stream."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._keep()

    @property
    def position(self) -> tuple[Part | None, list[Tensor]]:
        """Where the stream is: its part, and the states of its generators. It can be set back to an earlier one."""
        return self.part, self._states

    @position.setter
    def position(self, value: tuple[Part | None, list[Tensor]]) -> None:
        self.part, self._states = value

    def _keep(self) -> None:
        cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._states = [torch.get_rng_state(), *cuda]


_stream: SharedStream | None = None
_drawing: Callable[[Callable[[], Any]], Any] | None = None


def share(stream: SharedStream | None, part: Part | None = None) -> None:
    """Make `draw` use a stream; `part` is this process's part of the batch. None: back to torch's generator."""
    global _stream
    _stream = stream
    if stream is not None:
        stream.part = part


def replaying() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A pair of contexts: for a computation, and for its repetition, which then draws the same numbers from the stream.

    It is a `context_fn` of torch.utils.checkpoint, which itself does the same for torch's generators.
    """
    return nullcontext(), _Replayed(_stream)


class _Replayed:
    """Draws from a stream as of an earlier position; then the stream is where it was.

    Not a generator of contextlib: torch ends a repetition by an exception, whose frames a generator would keep alive,
    with their tensors, until the garbage collector comes.
    """

    def __init__(self, stream: SharedStream | None) -> None:
        self._stream = stream
        self._position = None if stream is None else stream.position

    def __enter__(self) -> None:
        global _stream
        self._outer, _stream = _stream, self._stream
        if self._stream is not None and self._position is not None:
            self._latest = self._stream.position
            self._stream.position = self._position

    def __exit__(self, *_: object) -> None:
        global _stream
        _stream = self._outer
        if self._stream is not None:
            self._stream.position = self._latest


def is_shared() -> bool:
    """Whether random numbers come from a stream that processes share."""
    return _stream is not None


def counted_clips(num: int) -> int:
    """Number of clips that count in means: `num`, or 0 if they are copies of another process's clips."""
    return num if _stream is None or _part().counted else 0


def draw(sample: Callable[[Sequence[int]], Tensor], shape: Sequence[int], axis: int = 0) -> Tensor:
    """Random numbers of a shape. `axis` runs over clips, or over rows with the rows of each clip together."""
    if _stream is None:
        return sample(shape)
    part, whole = _part(), list(shape)
    rows, rest = divmod(shape[axis], part.count)
    assert not rest, f"{shape} has no whole number of rows for each of {part.count} clips"
    whole[axis] = rows * part.total
    with _stream.active():
        return sample(whole).narrow(axis, rows * part.start, rows * part.count)


@contextmanager
def drawing_by(how: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Inside the block, `draw_once(sample)` is `how(sample)`. For runs on fake tensors, which have no values."""
    global _drawing
    before, _drawing = _drawing, how
    try:
        yield
    finally:
        _drawing = before


def draw_once(sample: Callable[[], T]) -> T:
    """A random number for the whole batch, equal in all processes."""
    if _drawing is not None:
        drawn: T = _drawing(sample)
        return drawn
    if _stream is None:
        return sample()
    with _stream.active():
        return sample()


def randn_like(x: Tensor, axis: int = 0) -> Tensor:
    """`torch.randn_like` for a tensor whose `axis` runs over clips, or over their rows."""
    if _stream is None:
        return torch.randn_like(x)
    return draw(lambda shape: x.new_empty(shape).normal_(), x.shape, axis)


class Dropout(nn.Dropout):
    """`nn.Dropout` for tensors whose first axis runs over clips, or over their rows."""

    def forward(self, x: Tensor) -> Tensor:
        if _stream is None or not self.training or not self.p:
            out: Tensor = super().forward(x)
            return out
        return x * draw(lambda shape: F.dropout(x.new_ones(shape), self.p), x.shape)


class StochasticDepth(Dropout):
    """Drops whole rows of a residual branch with probability `p` (arXiv 1603.09382); scales the others by 1/(1-p)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * super().forward(x.new_ones(len(x), *[1] * (x.ndim - 1)))


def _part() -> Part:
    assert _stream is not None
    assert _stream.part is not None
    return _stream.part
