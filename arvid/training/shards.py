"""Tensors whose rows are divided among processes (torch's DTensor), and plain tensors, in the same calls."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which shares memory with it. A plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process. All processes that share it must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Divide `values`, a whole tensor that all processes have, as `like` is divided. Nothing is sent."""
    if not isinstance(like, DTensor):
        return values
    device = like.device_mesh.device_type
    return distribute_tensor(
        values.to(device), like.device_mesh, like.placements, src_data_rank=None
    )


def with_values(part: Tensor, like: Tensor) -> Tensor:
    """A tensor that is divided as `like` is. `part` becomes its part in this process. Nothing is sent."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
