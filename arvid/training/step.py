"""What both modules do with the losses of a batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor


def log_step(
    module: LightningModule,
    losses: dict[str, Tensor],
    stage: Literal["train", "val"],
    batch_size: int,
) -> None:
    """Log the losses as `train_*` (each step) or `val_*` (mean of the validation)."""
    training = stage == "train"
    module.log_dict(
        {f"{stage}_{name}": value.detach() for name, value in losses.items()},
        on_step=training,
        on_epoch=not training,
        batch_size=batch_size,
        sync_dist=not training,
    )


def one_or_nan(losses: dict[str, Tensor]) -> Float[Tensor, ""]:
    """1, or NaN if one of the losses is not finite.

    As a factor of what is minimised it makes every gradient NaN then, on all processes, which share their gradients:
    the step is skipped (`arvid.training.finite`), and the device is not waited for.
    """
    values = torch.stack([value.detach().float() for value in losses.values()])
    return torch.where(values.isfinite().all(), 1.0, math.nan)
