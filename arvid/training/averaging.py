"""Running averages of the trained weights (EMA), which validation, checkpoints and sampling use.

It has the options and the checkpoint state of Lightning's `EMAWeightAveraging`, so each can resume from the other's
checkpoints. It is faster: Lightning loops over all parameters of the module, with those of the frozen tokenizer. Here
one call averages the trained parameters, and nothing waits for the device. Frozen parameters have no second copy. In a
sharded training the averages are sharded as the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging as LightningEMA
from torch import Tensor, nn

from arvid.ranges import SHARE, at_least
from arvid.training.guards import warn
from arvid.training.shards import local

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
        self._fitting = False
        self._averages: dict[str, Tensor] = {}
        self._averaged: list[Pair] = []
        self._copied: list[Pair] = []
        self._updates = torch.tensor(0)

    @property
    def _started(self) -> bool:
        return int(self._updates) > 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The averages are made later, when the weights are on their device, and sharded if they will be."""
        self._fitting = stage == "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the averages, or move those of a checkpoint to their device."""
        self._pair(pl_module)

    def _pair(self, module: LightningModule) -> None:
        """Pair averages and weights; an average that does not exist yet is a copy. Each tensor is paired once."""
        self._averaged, self._copied = [], []
        averages: dict[Tensor, Tensor] = {}
        trained = [
            (n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad
        ]
        for name, weight in [*trained, *module.named_buffers(remove_duplicate=False)]:
            if weight not in averages:
                average = self._averages.get(name, weight.detach().clone())
                average = average.to(self._device or weight.device)
                averages[weight] = average
                averaged = isinstance(weight, nn.Parameter) or (
                    self._use_buffers and weight.is_floating_point()
                )
                (self._averaged if averaged else self._copied).append((average, weight))
            self._averages[name] = averages[weight]

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
        self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the averages as the module's state, and the weights that are trained under `current_model_state`."""
        if not self._averages:
            return
        self._copy_until_started()
        current = checkpoint["state_dict"]
        checkpoint["current_model_state"] = current
        checkpoint["state_dict"] = {n: self._averages.get(n, value) for n, value in current.items()}
        checkpoint["averaging_state"] = {"n_averaged": self._updates}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning has loaded the averages into the module: make them the averages, and load the weights.

        Without averages in the checkpoint, its weights are the first averages.
        """
        if not self._fitting:
            return
        self._averages = {}
        self._pair(pl_module)
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])
            self._updates = checkpoint["averaging_state"]["n_averaged"].cpu().clone()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:
            warn("Training ended before any weights were averaged: see update_starting_at_step.")
        self._copy_until_started()
        for average, weight in self._local_pairs():
            weight.copy_(average)

    @torch.no_grad()
    def _copy_until_started(self) -> None:
        """Before the first update: copy the current weights into the averages."""
        if not self._started and self._averaged:
            torch._foreach_copy_(*_lists(self._averaged))

    @torch.no_grad()
    def _update(self) -> None:
        averages, weights = _lists(self._averaged)
        # the first update copies, as Lightning's does
        torch._foreach_lerp_(averages, weights, 1 - self.decay if self._started else 1.0)
        if self._copied:
            torch._foreach_copy_(*_lists(self._copied))
        self._updates += 1

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._local_pairs():
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)

    def _local_pairs(self) -> list[Pair]:
        pairs = [*self._averaged, *self._copied]
        return [(local(a.detach()), local(w.detach())) for a, w in pairs]


def _lists(pairs: list[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """This process's parts of all averages, and of all weights, moved to the averages' device."""
    averages = [local(a.detach()) for a, _ in pairs]
    weights = [local(w.detach()) for _, w in pairs]
    return averages, [w.to(a.device) for a, w in zip(averages, weights, strict=True)]
