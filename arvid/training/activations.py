"""Variance and largest absolute value of each transformer block's output during training.

NOVA (arXiv:2412.14169, section 4.4) chose the position of its norms by these curves. Blocks are measured only in steps
that are logged, so other steps cost nothing.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from arvid.nn.attention import TransformerBlock

VARIANCE, LARGEST = "variance.", "largest."
"""Prefixes of the logged names (`train_variance.BLOCK`)."""
FP16_MAX = torch.finfo(torch.float16).max
"""Largest finite number in half precision."""


class Activations(Callback):
    """Logs `train_variance.BLOCK` and `train_largest.BLOCK` (absolute value) of each transformer block's output."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._found: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # this step is not logged
        for name, block in pl_module.paradigm.named_modules():  # type: ignore[union-attr]
            if isinstance(block, TransformerBlock):
                short = name.replace(".layers.", ".").replace(".blocks.", ".")
                self._hooks.append(block.register_forward_hook(partial(self._take, short)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._found:
            pl_module.log_dict(self._found)
            self._found = {}

    def _take(self, name: str, block: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.detach().float()
        self._found[f"train_{VARIANCE}{name}"] = values.var()
        self._found[f"train_{LARGEST}{name}"] = values.abs().max()


def block_names(run: Path) -> list[str]:
    """Names of the blocks in a run's logs, in no order; empty if `Activations` did not run."""
    prefix = f"train_{VARIANCE}"
    for log in sorted(run.glob("logs/version_*/metrics.csv")):
        with open(log, newline="") as file:
            columns = csv.DictReader(file).fieldnames or []
        if names := [c.removeprefix(prefix) for c in columns if c.startswith(prefix)]:
            return names
    return []
