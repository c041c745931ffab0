"""Divide the clips of a step (the global batch) among processes.

A step has `data.clips_per_step` clips, in micro-batches of `data.batch_size`. Processes take micro-batches in turn and
accumulate gradients over their own. If there are more processes than micro-batches, several processes share one. Clip
order and noise belong to the micro-batch, not to the process. So any number of processes computes the same losses, up
to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.errors import UserError


@dataclass(frozen=True)
class Division:
    """How processes share the clips of a step."""

    batch_size: int
    """Clips per batch of a process."""
    accumulate: int = 1
    """Batches per process and step (gradient accumulation)."""
    parts: int = 1
    """Processes that share a micro-batch."""


def divide(clips_per_step: int, batch_size: int, num_processes: int) -> Division:
    """Divide the clips of a step.

    Args:
        clips_per_step: clips of a step, over all processes.
        batch_size: clips that fit on a device at a time. A micro-batch has this size, or the next smaller divisor of
            `clips_per_step`.
        num_processes: number of processes.

    Raises UserError, with the possible numbers, if this number of processes cannot share a step.
    """
    if clips_per_step % num_processes:
        raise UserError(
            f"{num_processes} processes cannot share the {clips_per_step} clips of a step (data.clips_per_step). "
            f"Possible numbers of processes: {', '.join(map(str, _divisors(clips_per_step)))} (--trainer.devices, "
            "or the number that you launch)."
        )
    micro = max(n for n in _divisors(clips_per_step) if n <= batch_size)
    own = clips_per_step // num_processes
    # The batch of a process divides both: `parts` processes fill a micro-batch, `accumulate` batches make `own`.
    size = max(n for n in _divisors(micro) if own % n == 0)
    return Division(size, own // size, micro // size)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
