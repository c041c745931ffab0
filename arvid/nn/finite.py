"""Networks whose weights are not finite: refused by name before they compute, for what they give may look like numbers.

The largest of logits that are not numbers is an id like any other, and frames in bytes hold no NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvid.errors import UserError


@torch.no_grad()
def require_finite_weights(network: nn.Module, what: str) -> None:
    """Raise UserError naming a weight that is NaN or infinite, or a buffer that is NaN. `what` is the network's name.

    Looks at every weight once and waits for the device once.
    """
    tensors = {name: x for name, x in network.state_dict(keep_vars=True).items() if _is_float(x)}
    if not tensors:
        return
    device = next(iter(tensors.values())).device
    flags = torch.stack([_is_sound(x).all().to(device) for x in tensors.values()])
    ruined = [name for name, sound in zip(tensors, flags.tolist(), strict=True) if not sound]
    if ruined:
        wrong = ~_is_sound(tensors[ruined[0]])
        raise UserError(
            f"{what} has weights that are not finite: {len(ruined)} of {len(tensors)} tensors ({int(wrong.sum())} of "
            f"{wrong.numel()} numbers of {ruined[0]}). Its training failed before it was saved: take an earlier "
            "checkpoint, or train it anew."
        )


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_sound(x: Tensor) -> Tensor:
    """Which numbers are as they may be: a mask in a buffer may hold infinities."""
    return x.isfinite() if isinstance(x, nn.Parameter) else ~x.isnan()
