"""What both modules do with the losses of a batch."""

from __future__ import annotations

import math
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor

from arvid.nn.draws import counted_clips

Values = dict[str, Tensor]


def log_step(
    module: LightningModule,
    losses: dict[str, Tensor],
    stage: Literal["train", "val"],
    batch_size: int,
) -> None:
    """Log the losses as `train_*` (each step, mean over its clips) or `val_*` (mean of the validation)."""
    values = {name: value.detach() for name, value in losses.items()}
    training = stage == "train"
    if training:
        values = _of_whole_step(module, values)
    module.log_dict(
        {f"{stage}_{name}": value for name, value in values.items()},
        on_step=training,
        on_epoch=not training,
        batch_size=weight(module, batch_size),
        sync_dist=not training,
    )


def one_or_nan(losses: dict[str, Tensor]) -> Float[Tensor, ""]:
    """1, or NaN if one of the losses is not finite.

    As a factor of what is minimised it makes every gradient NaN then, on all processes, which share their gradients:
    the step is skipped (`arvid.training.finite`), and the device is not waited for.
    """
    values = torch.stack([value.detach().float() for value in losses.values()])
    return torch.where(values.isfinite().all(), 1.0, math.nan)


def weight(module: LightningModule, num_clips: int) -> int:
    """What a batch weighs in the mean of a validation: the clips that count in this process.

    Lightning averages these weights over processes as integers; times the number of processes they stay exact.
    """
    return counted_clips(num_clips) * module.trainer.world_size


_batches: WeakKeyDictionary[LightningModule, list[Values]] = WeakKeyDictionary()
"""Losses of the batches of a module's step so far."""


def _of_whole_step(module: LightningModule, values: Values) -> Values:
    """Mean over the batches of a step, and over all processes where the last of them is logged."""
    trainer = module.trainer
    number = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
    batches = _batches.setdefault(module, [])
    del batches[number:]  # what an interrupted training left
    batches.append(values)
    last = number == trainer.accumulate_grad_batches - 1
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    logged = every > 0 and (trainer.global_step + 1) % every == 0
    mean = torch.stack([torch.stack([v.float() for v in b.values()]) for b in batches]).mean(0)
    if last and logged and trainer.world_size > 1:
        mean = trainer.strategy.reduce(mean, reduce_op="mean")
    return dict(zip(values, mean, strict=True))
