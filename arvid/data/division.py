"""The clips of a step (the global batch), the same on any number of processes.

A step has `data.clips_per_step` clips, in micro-batches of `data.batch_size`. Processes take micro-batches in turn, and
each accumulates gradients over its own. Where there are more processes than micro-batches, several processes share
one. The order of the clips and the noise belong to the micro-batch, not to the process: so one process and several
compute the same losses but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.errors import UserError


@dataclass(frozen=True)
class Division:
    """How a step's clips are shared by processes."""

    batch_size: int
    """Clips that a process holds at a time."""
    accumulate: int = 1
    """Batches per process and step (gradient accumulation)."""
    parts: int = 1
    """Processes that share a micro-batch."""


def divide(clips_per_step: int, batch_size: int, num_processes: int) -> Division:
    """Share the clips of a step.

    Args:
        clips_per_step: clips of a step, over all processes.
        batch_size: clips that fit on a device at a time. A micro-batch has as many, or the next smaller number that
            divides the step.
        num_processes: that share each step.

    Raises UserError naming the numbers of processes that can share a step if this one cannot.
    """
    if clips_per_step % num_processes:
        raise UserError(
            f"{num_processes} processes cannot share the {clips_per_step} clips of a step (data.clips_per_step). "
            f"Choose a number of processes out of {', '.join(map(str, _divisors(clips_per_step)))} (--trainer.devices, "
            "or how many are launched)."
        )
    micro = max(n for n in _divisors(clips_per_step) if n <= batch_size)
    own = clips_per_step // num_processes
    size = max(n for n in _divisors(micro) if own % n == 0)
    return Division(size, own // size, micro // size)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
