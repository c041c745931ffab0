"""Sealed safetensors files, whose loading verifies a checksum, and the hash of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arvid.files import atomic_write
from arvid.sealed import Damaged, seal_tensors, verify_tensor_file


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata with their checksum, atomically. Raises OSError and SafetensorError."""
    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, such as the features of two metrics
        whole[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    content = safetensors.torch.save(whole, dict(metadata or {}))
    with atomic_write(path) as temporary:
        temporary.write_bytes(seal_tensors(content))


def load_tensors(path: Path, *, sealed: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata. Raises OSError, and Damaged if the content has changed.

    `sealed`: the file must have a checksum. Files of older formats have none.
    """
    try:
        verify_tensor_file(path, required=sealed)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return tensors, dict(file.metadata())
    except (SafetensorError, ValueError) as error:  # mmap refuses an empty file with a ValueError
        raise error if isinstance(error, Damaged) else Damaged(str(error)) from error


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values, independent of order and device."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        values: NDArray[np.uint8] = value.flatten().view(torch.uint8).numpy()
        digest.update(values.data)
    return digest.hexdigest()
