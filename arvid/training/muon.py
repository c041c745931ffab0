"""Muon for the matrices of a network's stacks of blocks, AdamW for all other parameters, at one learning rate.

Muon (Keller Jordan, 2024) orthogonalises the momentum of each matrix before the step, so all directions of a matrix
learn at the same pace. Updates are scaled to the RMS of AdamW's (arXiv 2502.16982), so learning rate and weight decay
mean the same for both. Options, state and update rule are those of `torch.optim.Muon`, with two differences. Matrices
of one shape are orthogonalised in one batch. On CPUs this is done in float32, because bfloat16 takes 10 to 90 times as
long on CPUs without instructions for it.

Of a sharded network (`arvid.training.sharding`), momenta are sharded too. Each process orthogonalises the whole
matrices, as without sharding, and updates its own rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from arvid.contracts import TokenHead
from arvid.training.shards import local, part_of, whole, with_values


class BatchedMuon(Muon):
    """`torch.optim.Muon` with AdamW-sized updates, computed in one batch for all matrices of one shape."""

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. The tensor `found_inf`, if set and not 0, skips it, as in torch's fused AdamW.

        `closure` must be None: `MuonAdamW` calls it.
        """
        assert closure is None
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape[matrix.shape].append(matrix)
            for shape, matrices in same_shape.items():
                parts = [local(matrix) for matrix in matrices]
                # `found_inf` stays on the device. To skip without reading it: compute the step, then restore.
                before = [part.clone() for part in parts] if found_inf is not None else []
                updates = orthogonal(self._momenta(matrices, group, found_inf), group)
                updates = updates.to(parts[0].dtype)
                own = [local(part_of(u, m)) for u, m in zip(updates, matrices, strict=True)]
                # An orthogonal m x n matrix has RMS 1/sqrt(max(m, n)); AdamW's updates have about 0.2 (2502.16982).
                lr = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parts, own, alpha=-lr)
                if found_inf is not None:
                    for part, old in zip(parts, before, strict=True):
                        part.copy_(torch.where(found_inf.bool(), old, part))

    def _momenta(
        self, matrices: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
    ) -> Float[Tensor, "k m n"]:
        """Update the momenta of K matrices with their gradients; returns the Nesterov momenta, whole if sharded."""
        gradients = [local(matrix.grad) for matrix in matrices if matrix.grad is not None]
        states = [self.state[matrix] for matrix in matrices]
        for state, matrix in zip(states, matrices, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [local(state["momentum_buffer"]) for state in states]
        if found_inf is not None:
            # To skip: a gradient equal to the momentum leaves the momentum as it is.
            skip = found_inf.bool()
            gradients = [torch.where(skip, b, g) for b, g in zip(buffers, gradients, strict=True)]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        momenta = torch._foreach_lerp(gradients, buffers, group["momentum"])
        pairs = zip(momenta, matrices, strict=True)
        return torch.stack([whole(with_values(momentum, matrix)) for momentum, matrix in pairs])


def orthogonal(matrices: Float[Tensor, "k m n"], group: dict[str, Any]) -> Float[Tensor, "k m n"]:
    """Orthogonal factors U V^T of K matrices, approximated by the Newton-Schulz iteration of torch's Muon.

    `group` holds `ns_coefficients`, `ns_steps` and `eps`. The result is float32 on CPUs and bfloat16 elsewhere.
    """
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    # Make m the shorter side: the iteration works on the Gram matrix X X^T (m, m).
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    # The iteration converges for a spectral norm of at most 1; the Frobenius norm is an upper bound of it.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    with torch.autocast(x.device.type, enabled=False):
        x = _by_gram(x, group) if x.dtype == torch.float32 else _newton_schulz(x, group)
    return x.mT if tall else x


def _newton_schulz(x: Float[Tensor, "k m n"], group: dict[str, Any]) -> Float[Tensor, "k m n"]:
    """Each step: X <- (a I + b G + c G^2) X with G = X X^T."""
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        # baddbmm(in, A, B, beta, alpha) = beta in + alpha A B: inside b G + c G^2, outside a X + (...) X
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Float[Tensor, "k m n"], group: dict[str, Any]) -> Float[Tensor, "k m n"]:
    """The same steps on G only. With P = a I + b G + c G^2 a step is X <- P X, so G <- P G P (P is symmetric).

    Only the first and the last product have a side n; all others are m x m. That takes two thirds of the time if n is
    3 to 4 times m. GPUs keep torch's form, which was made for bfloat16.
    """
    a, b, c = group["ns_coefficients"]
    gram = x @ x.mT
    eye = a * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    factor = None  # product of all P so far
    for step in range(group["ns_steps"]):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + eye
        factor = p if factor is None else p @ factor
        if step + 1 < group["ns_steps"]:  # the last G is not used
            gram = p @ gram @ p
    return x if factor is None else factor @ x


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, because Lightning's automatic optimisation takes only one.

    Args:
        matrices: weights that Muon trains.
        others: parameter groups that AdamW trains.
        lr: learning rate of both.
        betas: AdamW's betas.
        weight_decay: weight decay of the matrices.
        fused: run AdamW as one fused call.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        fused: bool,
    ) -> None:
        muon = BatchedMuon(matrices, lr=lr, weight_decay=weight_decay)
        self.parts: tuple[Optimizer, ...] = (
            muon,
            AdamW(others, lr=lr, betas=betas, fused=fused),
        )
        # the same dicts as in the parts, so a schedule changes the learning rate of both
        super().__init__(self._groups(), {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for part in self.parts:
            part.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()  # loading made new dicts

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]


def stacked_matrices(module: nn.Module, *, heads: bool) -> list[Tensor]:
    """Trained weights of the linear maps inside stacks of blocks (`nn.ModuleList`), without input and output layers.

    `heads`: also those of stacks inside token heads.
    """
    children = list(module.modules())
    stacks = [child for child in children if isinstance(child, nn.ModuleList)]
    linears = [
        child for stack in stacks for child in stack.modules() if isinstance(child, nn.Linear)
    ]
    # A dict as an ordered set: stacks may be nested, and weights may be shared.
    found = dict.fromkeys(linear.weight for linear in linears if linear.weight.requires_grad)
    in_heads = set()
    if not heads:
        in_heads = {
            p for child in children if isinstance(child, TokenHead) for p in child.parameters()
        }
    return [weight for weight in found if weight not in in_heads]
