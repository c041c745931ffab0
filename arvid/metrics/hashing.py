"""Hash of tensors: the key of a cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values, independent of order and device."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        values: NDArray[np.uint8] = value.flatten().view(torch.uint8).numpy()
        digest.update(values.data)
    return digest.hexdigest()
