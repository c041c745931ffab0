"""Values and tensors that are computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


@contextmanager
def lasting() -> Iterator[None]:
    """Inside the block, tensors have values and serve all later calls, whatever mode this call is in.

    A tensor made in inference mode could not be saved for a backward pass, and a fake one (`arvid plan`) has no values.
    """
    with torch.inference_mode(False), unset_fake_temporarily():
        yield


@lru_cache(maxsize=4096)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of these numbers, which must not be changed. It is made once: a copy to a GPU makes the host wait."""
    with lasting():
        return torch.tensor(values, device=device, dtype=dtype)
