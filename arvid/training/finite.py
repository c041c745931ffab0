"""Skips steps whose loss or gradient is not finite, counts them, and ends the training after many in a row.

A loss that is not finite makes every gradient NaN (`arvid.training.step.one_or_nan`). Gradients are averaged over
processes before the check, so all processes decide alike without further communication. On GPUs the result stays on
the device: the optimisers of `build_optimizer` take it as `found_inf`, as torch's do from a GradScaler. The CPU reads
it every `CHECKED_EVERY` steps. A skipped step counts as a step: the next one has other clips.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from arvid.errors import UserError
from arvid.ranges import at_least
from arvid.training.guards import CHECKED_EVERY, warn
from arvid.training.saving import make_last, saved_before, wait_for_checkpoint
from arvid.training.shards import whole

PATIENCE = 30
"""Skipped steps in a row that end the training. A GradScaler that starts at 2^16 is then at 2^-14."""


class SkipNonfinite(Callback):
    """Skips steps whose gradient is not finite. Logs `skipped_steps`, their number so far, and the `gradient_norm`.

    The norm is that of the whole gradient before it is clipped.

    A skipped step changes neither weights nor moments. Raises FloatingPointError after `patience` skipped steps in a
    row; the error names the checkpoint to resume from. On GPUs it comes up to `CHECKED_EVERY` steps late.

    Args:
        patience: skipped steps in a row that end the training.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        at_least(1).require("SkipNonfinite.", patience=patience)
        self.patience = patience
        self._found = torch.zeros((), dtype=torch.bool)
        self._norm = torch.zeros(())
        self._skipped = torch.zeros((), dtype=torch.int64)
        self._in_a_row = torch.zeros((), dtype=torch.int64)
        self._reported = 0
        self._step = 0

    def in_doubt(self) -> bool:
        """Whether the last step was skipped, so the weights may be broken. Waits for the device."""
        return bool(self._in_a_row)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self._found, self._skipped, self._in_a_row = (
            count.to(device) for count in (self._found, self._skipped, self._in_a_row)
        )
        self._reported, self._step = int(self._skipped), trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = _gradients(optimizer)
        if not gradients:
            return
        norm = whole(get_total_norm(gradients))
        if optimizer is trainer.optimizers[0]:  # the second one is a discriminator's
            self._norm = norm
        found = ~norm.isfinite()
        self._found = self._found | found
        if getattr(optimizer, "takes_found_inf", False):
            optimizer.found_inf = found.float()  # type: ignore[attr-defined]
        elif found:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # optimisers skip it: no decay, no moments

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        self._skipped = self._skipped + self._found
        self._in_a_row = (self._in_a_row + 1) * self._found
        self._found = torch.zeros_like(self._found)
        values = {"skipped_steps": self._skipped.float(), "gradient_norm": self._norm}
        pl_module.log_dict(values, rank_zero_only=True)
        due = self._step % CHECKED_EVERY == 0
        if due or pl_module.device.type == "cpu":
            self._require_few(trainer, pl_module, batch)
        if due:
            self._report(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if broken := _not_finite(trainer, "val_"):
            warn(
                f"Validation after step {trainer.global_step}: the losses are not finite ({broken})."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": int(self._skipped), "in_a_row": int(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped = torch.tensor(state_dict["skipped"])
        self._in_a_row = torch.tensor(state_dict["in_a_row"])

    def _report(self, trainer: Trainer) -> None:
        skipped = int(self._skipped)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if skipped > self._reported and not scaled:  # a GradScaler finds its scale by skipping
            warn(
                f"{skipped - self._reported} of the steps up to {self._step} were skipped: "
                "their loss or gradient was not finite."
            )
        self._reported = skipped

    def _require_few(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        count = int(self._in_a_row)
        if count < self.patience:
            return
        first = self._step - count
        broken = _not_finite(trainer, "train_")
        what = (
            f"The train loss is not finite ({broken})" if broken else "The gradient is not finite"
        )
        explain = getattr(module, "explain_nonfinite", None)
        why = f" {explain(batch)}" if explain else ""
        raise FloatingPointError(
            f"{what}, for {count} steps in a row, from step {first} on; they were skipped.{why} "
            f"{_go_back(trainer, first)}"
        )


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in parameters if p.grad is not None]


def _not_finite(trainer: Trainer, prefix: str) -> str:
    """The logged losses of a stage, if one of them is not finite: `loss nan, per_token nan`."""
    losses = {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }
    finite = all(map(math.isfinite, losses.values()))
    return "" if finite else ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def _go_back(trainer: Trainer, step: int) -> str:
    """Make last.ckpt the newest checkpoint with fewer than `step` steps, whose weights gave finite losses.

    Returns advice for the user.
    """
    with suppress(UserError):  # its failure is logged, and is not why the training ends
        wait_for_checkpoint(trainer)  # it would become last.ckpt later
    checkpoint = saved_before(Path(trainer.default_root_dir), step)
    if checkpoint is None:
        return "There is no earlier checkpoint: start again in another --run folder."
    if trainer.is_global_zero:
        make_last(checkpoint)
    return (
        f"The last checkpoint before that step is {checkpoint}; last.ckpt is now that one. Resume from it with "
        "--allow_changes true and a change, such as a lower learning rate."
    )
