"""Running averages of the trained weights (EMA), which validation, checkpoints and sampling use.

It has the options and the checkpoint state of Lightning's `EMAWeightAveraging`, so each can resume from the other's
checkpoints. It is faster: Lightning loops over all parameters of the module, with those of the frozen tokenizer. Here
one call averages the trained parameters, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging as LightningEMA
from torch import Tensor

from arvid.ranges import SHARE, at_least
from arvid.training.guards import warn

Pair = tuple[Tensor, Tensor]
"""An average, and the weight whose average it is."""


class EMAWeightAveraging(LightningEMA):
    """After each step: average = decay · average + (1 - decay) · weights.

    Before the first update, validation, checkpoints and the end of training use the current weights as averages.
    (Lightning validates and saves the untrained weights until `update_starting_at_step`.)

    Args:
        device: device of the averages; by default the model's.
        use_buffers: average buffers of floats too. Otherwise all buffers are copied.
        decay: share of the old average that an update keeps.
        update_every_n_steps: optimiser steps between two updates.
        update_starting_at_step: first step whose weights are averaged; by default the first of the training.
        update_starting_at_epoch: first epoch at whose end weights are averaged; by default no epoch.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        SHARE.require("EMAWeightAveraging.", decay=decay)
        at_least(1).require("EMAWeightAveraging.", update_every_n_steps=update_every_n_steps)
        at_least(0).require(
            "EMAWeightAveraging.",
            update_starting_at_step=update_starting_at_step,
            update_starting_at_epoch=update_starting_at_epoch,
        )
        super().__init__(
            device=device,
            use_buffers=use_buffers,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
            update_starting_at_epoch=update_starting_at_epoch,
        )
        self.decay = decay
        self._averaged: list[Pair] = []
        self._copied: list[Pair] = []
        self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the pairs of averages and weights once, after a checkpoint has been loaded into them."""
        super().on_train_start(trainer, pl_module)
        assert self._average_model is not None
        average = self._average_model.module
        trained = _pairs(average.named_parameters(), pl_module.named_parameters())
        buffers = _pairs(average.named_buffers(), pl_module.named_buffers())
        averaged = [pair for pair in buffers if self._use_buffers and pair[1].is_floating_point()]
        self._averaged = [pair for pair in trained if pair[1].requires_grad] + averaged
        self._copied = [] if self._use_buffers else buffers
        self._started = int(self._average_model.n_averaged) > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update()
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch > self._latest_update_epoch and self.should_update(epoch_idx=epoch):
            self._update()
            self._latest_update_epoch = epoch

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_until_started()
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._copy_until_started()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:
            warn("Training ended before any weights were averaged: see update_starting_at_step.")
        self._copy_until_started()
        super().on_train_end(trainer, pl_module)

    @torch.no_grad()
    def _copy_until_started(self) -> None:
        """Before the first update: copy the current weights into the averages."""
        if not self._started and self._averaged:
            torch._foreach_copy_(*_lists(self._averaged))

    @torch.no_grad()
    def _update(self) -> None:
        assert self._average_model is not None
        averages, weights = _lists(self._averaged)
        # the first update copies, as Lightning's does
        torch._foreach_lerp_(averages, weights, 1 - self.decay if self._started else 1.0)
        if self._copied:
            torch._foreach_copy_(*_lists(self._copied))
        self._average_model.n_averaged += 1
        self._started = True


def _pairs(
    averages: Iterable[tuple[str, Tensor]], weights: Iterable[tuple[str, Tensor]]
) -> list[Pair]:
    """Pairs of tensors with the same name."""
    named = dict(averages)
    return [(named[name], weight) for name, weight in weights]


def _lists(pairs: list[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """All averages, and all weights moved to the averages' device."""
    return [a.detach() for a, _ in pairs], [w.detach().to(a.device) for a, w in pairs]
