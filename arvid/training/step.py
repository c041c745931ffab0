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

    Raises FloatingPointError naming all parts if one is not finite.
    """
    values = {name: value.detach() for name, value in losses.items()}
    if not torch.isfinite(torch.stack([value.float() for value in values.values()])).all():
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        raise FloatingPointError(f"The {stage} loss is not finite ({parts}).")
    training = stage == "train"
    module.log_dict(
        {f"{stage}_{name}": value for name, value in values.items()},
        on_step=training,
        on_epoch=not training,
        batch_size=batch_size,
        sync_dist=not training,
    )
    return losses["loss"]
