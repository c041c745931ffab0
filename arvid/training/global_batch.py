"""Helpers that keep the global batch of each step equal when a run resumes on another number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer


def clips_per_step_of_older(run: Path, num_processes: int) -> int | None:
    """Global batch size of a run that an older arvid began, whose configuration has no `clips_per_step`.

    A resumed run keeps its global batch size. None for newer runs, and if there is no run.
    """
    configs = list(run.glob("logs/version_*/config.yaml"))
    if not configs:
        return None
    first = min(configs, key=lambda path: path.stat().st_mtime)
    try:
        found = yaml.safe_load(first.read_text())
        if "clips_per_step" in found["data"]:
            return None
        accumulated = int(found["trainer"]["accumulate_grad_batches"] or 1)
        return int(found["data"]["batch_size"]) * accumulated * num_processes
    except (yaml.YAMLError, LookupError, TypeError, ValueError):  # edited by hand, or cut off
        return None


class CountSteps(Callback):
    """Lets a run resume with another number of batches per step: Lightning's checkpoints count batches, not steps."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = int(checkpoint["global_step"]) * trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            # Shift all counters alike: their differences say how far Lightning is within a batch.
            shift = done - counts["ready"]
            counts.update({name: count + shift for name, count in counts.items()})
