"""AdamW and its learning-rate schedule, the same for tokenizers and generators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from arvid.contracts import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a warm-up and a schedule that spans the whole training."""

    lr: float
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's running mean and variance of the gradient."""
    weight_decay: float = 0.02
    """Decay of the weights of linear maps and convolutions; tables, biases and norms are not decayed."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from near 0 to its peak."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes on after the warm-up: to 0 by a half cosine or a line, or not at all."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                "The optimizer needs lr > 0, warmup_steps >= 0 and weight_decay >= 0, "
                f"got {self.lr}, {self.warmup_steps} and {self.weight_decay}."
            )

    def factor(self, step: int, max_steps: int) -> float:
        """Learning rate of a step (counted from 0) as a part of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(max_steps - self.warmup_steps, 1)
        remaining = max(0.0, 1 - progress)
        return remaining if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * remaining)


def build_optimizer(module: nn.Module, config: OptimizerConfig, max_steps: int) -> dict[str, Any]:
    """What a LightningModule's `configure_optimizers` returns: AdamW and a schedule that advances each step.

    Frozen parameters are left out. Raises UserError if the
    schedule needs to know its length and `max_steps` is not positive (Lightning's sign for endless).
    """
    if config.schedule != "constant" and not 0 < max_steps < math.inf:
        raise UserError(
            f"The {config.schedule} schedule must know its length: "
            "set trainer.max_steps, or schedule: constant."
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = _decayed(module)
    decayed = [p for p in trained if id(p) in matrices]
    others = [p for p in trained if id(p) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # not fused: Lightning refuses to clip gradients for a fused optimizer in mixed precision
    optimizer = AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
    )
    schedule = LambdaLR(optimizer, lambda step: config.factor(step, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _decayed(module: nn.Module) -> set[int]:
    """Ids of the parameters that decay: weights of linear maps and convolutions, not tables, biases or norms."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {id(child.weight) for child in module.modules() if isinstance(child, kinds)}
