"""Muon for the matrices of a network's stacks of blocks, AdamW for all else, at one learning rate.

Muon (Keller Jordan, 2024) makes each matrix's momentum orthogonal before it steps along it: all directions of a matrix
learn at one pace. Its updates are scaled to the size of AdamW's (arXiv 2502.16982), so that learning rate and weight
decay mean the same for both. The implementation is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Steps a Muon and an AdamW as one optimizer, which is what a Lightning training takes.

    Args:
        matrices: what Muon trains.
        others: parameter groups for AdamW.
        lr: of both.
        betas: of AdamW.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        muon = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts: tuple[Optimizer, ...] = (muon, AdamW(others, lr=lr, betas=betas))
        super().__init__(
            self._groups(), {}
        )  # the very groups of the parts: a schedule reaches both

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]


def stacked_matrices(module: nn.Module) -> list[Tensor]:
    """Trained weights of the linear maps inside stacks of blocks (`nn.ModuleList`): not those at inputs and heads."""
    stacks = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    linears = [
        child for stack in stacks for child in stack.modules() if isinstance(child, nn.Linear)
    ]
    return list(dict.fromkeys(linear.weight for linear in linears if linear.weight.requires_grad))
