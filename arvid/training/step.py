"""Logging and checking of a batch's losses, for both LightningModules."""

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
    """Log the losses as `train_*` (each step, mean over the global batch) or `val_*` (mean over the validation)."""
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

    The minimised loss is multiplied by it. NaN then makes every gradient NaN on all processes, because they average
    gradients, and the step is skipped (`arvid.training.finite`). Nothing waits for the device.
    """
    values = torch.stack([value.detach().float() for value in losses.values()])
    return torch.where(values.isfinite().all(), 1.0, math.nan)


def weight(module: LightningModule, num_clips: int) -> int:
    """Weight of a batch in a validation mean: the number of this process's clips that count.

    Lightning averages these weights over processes as integers. The factor `world_size` keeps that mean exact.
    """
    return counted_clips(num_clips) * module.trainer.world_size


_batches: WeakKeyDictionary[LightningModule, list[Values]] = WeakKeyDictionary()
"""Losses of the batches of the current step, by module."""


def _of_whole_step(module: LightningModule, values: Values) -> Values:
    """Mean over the accumulated batches of a step so far; over all processes too in a step that is logged."""
    trainer = module.trainer
    index = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
    batches = _batches.setdefault(module, [])
    del batches[index:]  # left by the previous step or by an interrupted training
    batches.append(values)
    last = index == trainer.accumulate_grad_batches - 1
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    logged = every > 0 and (trainer.global_step + 1) % every == 0
    mean = torch.stack([torch.stack([v.float() for v in b.values()]) for b in batches]).mean(0)
    if last and logged and trainer.world_size > 1:
        mean = trainer.strategy.reduce(mean, reduce_op="mean")
    return dict(zip(values, mean, strict=True))
