"""What both modules do with the losses of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from lightning import LightningModule
from torch import Tensor


def log_step(
    module: LightningModule,
    losses: dict[str, Tensor],
    stage: Literal["train", "val"],
    batch_size: int,
) -> Tensor:
    """Log the losses as `train_*` (each step) or `val_*` (mean of the validation) and return `loss`.

    Raises FloatingPointError naming all parts if the loss is not finite.
    """
    loss = losses["loss"]
    if not torch.isfinite(loss):
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        raise FloatingPointError(f"The {stage} loss is not finite ({parts}).")
    training = stage == "train"
    module.log_dict(
        {f"{stage}_{name}": value.detach() for name, value in losses.items()},
        on_step=training,
        on_epoch=not training,
        batch_size=batch_size,
        sync_dist=not training,
    )
    return loss
