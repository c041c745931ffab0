"""Optimizer and learning-rate schedule of tokenizers and generators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arvid.contracts import UserError
from arvid.ranges import Range, above, at_least
from arvid.training.muon import MuonAdamW, stacked_matrices


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, optionally with Muon, with a warm-up and a schedule over the whole training.

    Raises UserError for values outside their ranges.
    """

    lr: float
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates for the running mean and variance of the gradient."""
    weight_decay: float = 0.02
    """Weight decay of linear maps and convolutions. Embedding tables, biases and norms have none."""
    muon: bool | Literal["transformer"] = False
    """Train the matrices of the network's blocks with Muon (see arvid/training/muon.py). true: all blocks; transformer:
    without those of the token head. Neither paper has it. A short training progresses two to three times as fast per
    step. The cost does not depend on the batch; it grows with the third power of the width."""
    warmup_steps: int | float = 100
    """Steps of linear warm-up from near 0 to the peak. A value below 1 is a share of all steps."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning rate after the warm-up: cosine or linear decay to 0, or constant."""

    def __post_init__(self) -> None:
        above(0).require("optimizer.", lr=self.lr)
        Range(0, 1, high_open=True).require("optimizer.", betas=self.betas)
        at_least(0).require(
            "optimizer.", weight_decay=self.weight_decay, warmup_steps=self.warmup_steps
        )

    @property
    def warms_up_by_share(self) -> bool:
        """Whether the warm-up is a share of all steps."""
        return 0 < self.warmup_steps < 1

    @property
    def needs_length(self) -> bool:
        """Whether the rate of a step depends on the number of all steps."""
        return self.schedule != "constant" or self.warms_up_by_share

    def factor(self, step: int, max_steps: int | float) -> float:
        """Learning rate of a step (counted from 0), as a fraction of the peak."""
        warmup = round(self.warmup_steps * (max_steps if self.warms_up_by_share else 1))
        if step < warmup:
            return (step + 1) / (warmup + 1)  # never 0; the first step after it has the peak
        if self.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(max_steps - warmup, 1)
        remaining = max(0.0, 1 - progress)
        return remaining if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * remaining)


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, max_steps: int | float, *, fused: bool = False
) -> dict[str, Any]:
    """Optimizer and per-step schedule, in the form that `configure_optimizers` of a LightningModule returns.

    Frozen parameters are left out. `fused` is for AdamW, see `may_fuse`. Raises UserError if the schedule needs a
    length and `max_steps` is not positive (in Lightning: no end), and if Muon has no matrices to train.
    """
    if config.needs_length and not 0 < max_steps < math.inf:
        raise UserError(
            f"The {config.schedule} schedule must know its length: "
            "set trainer.max_steps, or schedule: constant with a warm-up in steps."
        )
    optimizer = _optimizer(module, config, fused)
    parts: tuple[Any, ...] = getattr(optimizer, "parts", (optimizer,))
    for part in parts:
        part.register_load_state_dict_pre_hook(_keep_options)
        # Otherwise Lightning refuses to clip gradients in mixed precision. No GradScaler is used with `fused`.
        part._step_supports_amp_scaling = False
    on_gpu = any(p.device.type == "cuda" for p in module.parameters())
    optimizer.takes_found_inf = fused and on_gpu  # type: ignore[attr-defined]
    schedule = Schedule(optimizer, lambda step: config.factor(step, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def may_fuse(precision: str, device: torch.device) -> bool:
    """Whether AdamW may run as one fused call. On GPUs it can skip a step by a flag on the device (`found_inf`).

    Not in 16-mixed, whose GradScaler checks gradients itself. Not in mixed precision on CPUs, to keep their numbers.
    """
    return precision != "16-mixed" and (device.type != "cpu" or not precision.endswith("-mixed"))


class Schedule(LambdaLR):
    """Learning rate by step. After a resume the rates are those of this run's configuration, not the checkpoint's."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take only the step from a checkpoint."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        rates = zip(self.base_lrs, self.lr_lambdas, strict=True)
        self._last_lr = [rate * factor(self.last_epoch) for rate, factor in rates]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def _keep_options(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A loaded state with the options of the optimizer itself, which come from the configuration."""
    groups = state_dict["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        return state_dict  # torch will refuse it
    kept = [
        {**own, "params": saved["params"]}
        for own, saved in zip(optimizer.param_groups, groups, strict=True)
    ]
    return {**state_dict, "param_groups": kept}


def _optimizer(module: nn.Module, config: OptimizerConfig, fused: bool) -> Optimizer:
    matrices = stacked_matrices(module, heads=config.muon is True) if config.muon else []
    taken = {id(p) for p in matrices}
    trained = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    decayed = _decayed(module)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not config.muon:
        return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    if not matrices:
        raise UserError(
            f"Muon trains the linear maps in a network's blocks; {type(module).__name__} has none. "
            "Remove muon from the optimizer's options."
        )
    return MuonAdamW(
        matrices,
        groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _decayed(module: nn.Module) -> set[int]:
    """Ids of the parameters with weight decay: weights of linear maps and convolutions."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {id(child.weight) for child in module.modules() if isinstance(child, kinds)}
