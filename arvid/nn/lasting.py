"""Values and tensors that are computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily


@contextmanager
def lasting() -> Iterator[None]:
    """Inside the block, tensors have values and serve all later calls, whatever mode this call is in.

    A tensor made in inference mode could not be saved for a backward pass, and a fake one (`arvid plan`) has no values.
    """
    with torch.inference_mode(False), unset_fake_temporarily():
        yield
