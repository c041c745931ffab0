"""Running averages of the trained weights (EMA), which validation, checkpoints and sampling use.

Lightning's `EMAWeightAveraging` with the same options and the same state in checkpoints, so that either goes on from
the other's. The difference is cost: Lightning's loops over all parameters of the module, those of the frozen tokenizer
included. Here one call averages the trained ones, and nothing waits for the device.
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
"""An average and the weight that it is of."""


class EMAWeightAveraging(LightningEMA):
    """After each step: average = decay · average + (1 - decay) · weights.

    Until the first update the averages are the weights wherever they are used: in validation, in checkpoints and at the
    end. (Lightning's are the untrained weights, which it validates and saves until `update_starting_at_step`.)

    Args:
        device: where the averages lie; by default where the model is.
        use_buffers: whether buffers of floats are averaged too. Otherwise all buffers are copied.
        decay: share of the old average that is kept at an update.
        update_every_n_steps: optimiser steps between two updates.
        update_starting_at_step: the first step whose weights are averaged; by default the first of the training.
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
        """Finds the pairs of averages and weights once, after a checkpoint was loaded into them."""
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
        self._follow()
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._follow()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:
            warn("The training is over before weights were averaged: see update_starting_at_step.")
        self._follow()
        super().on_train_end(trainer, pl_module)

    @torch.no_grad()
    def _follow(self) -> None:
        """Before the first update: let the averages be the weights of this moment."""
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
    """Tensors of the same name."""
    named = dict(averages)
    return [(named[name], weight) for name, weight in weights]


def _lists(pairs: list[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """Averages, and weights on the averages' device."""
    return [a.detach() for a, _ in pairs], [w.detach().to(a.device) for a, w in pairs]
