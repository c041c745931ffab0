"""Refuses networks whose weights are not finite, before they are used.

The faults would not show in the result: the argmax of NaN logits is a normal id, and uint8 frames have no NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvid.errors import UserError


@torch.no_grad()
def require_finite_weights(network: nn.Module, what: str) -> None:
    """Raise UserError with the name of a NaN or infinite weight, or of a NaN buffer. `what` is the network's name.

    Reads every weight once and waits for the device once.
    """
    # Not `state_dict`: it would divide the weights of a sharded network again.
    own = [*network.named_parameters(), *network.named_buffers()]
    tensors = {name: x for name, x in own if x.is_floating_point()}
    if not tensors:
        return
    device = next(iter(tensors.values())).device
    flags = torch.stack([_is_valid(x).all().to(device) for x in tensors.values()])
    broken = [name for name, valid in zip(tensors, flags.tolist(), strict=True) if not valid]
    if broken:
        wrong = ~_is_valid(tensors[broken[0]])
        raise UserError(
            f"{what} has weights that are not finite: {len(broken)} of {len(tensors)} tensors ({int(wrong.sum())} of "
            f"{wrong.numel()} numbers of {broken[0]}). Its training failed before it was saved: use an earlier "
            "checkpoint, or train it again."
        )


def _is_valid(x: Tensor) -> Tensor:
    """True for allowed numbers. Buffers may have infinities, as attention masks do."""
    return x.isfinite() if isinstance(x, nn.Parameter) else ~x.isnan()
