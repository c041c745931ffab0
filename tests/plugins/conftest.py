"""Weights and files for the tests of published tokenizers.

The weights are pseudo-random numbers from a formula. So the released code can be run elsewhere with the same weights.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arvid.contracts import VideoTokenizer
from arvid.importing import Imported
from arvid.training.export import load_tokenizer


@pytest.fixture(scope="session")
def noise() -> Callable[[tuple[int, ...], int], Tensor]:
    """Numbers in [-1, 1) of a shape. They depend on the key."""
    return _noise


@pytest.fixture(scope="session")
def formula_weights() -> Callable[[Mapping[str, tuple[int, ...]]], dict[str, Tensor]]:
    """Weights by name, from their shapes. Their size keeps the variance of activations about the same."""

    def make(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {name: _weight(name, shapes[name], key) for key, name in enumerate(sorted(shapes))}

    return make


def _weight(name: str, shape: tuple[int, ...], key: int) -> Tensor:
    if len(shape) == 1:  # biases, and the scales of norms
        scale = name.endswith("weight") or name.endswith("running_var")
        return 0.3 * _noise(shape, key) + float(scale)
    return _noise(shape, key) * math.sqrt(3 / math.prod(shape[1:]))


def _noise(shape: tuple[int, ...], key: int) -> Tensor:
    positions = torch.arange(math.prod(shape), dtype=torch.float64)
    values = torch.sin(positions * 12.9898 + key * 78.233) * 43758.5453
    return (2 * (values - values.floor()) - 1).float().reshape(shape)


@pytest.fixture
def import_content(tmp_path: Path) -> Callable[..., VideoTokenizer]:
    """Writes content to the file in.SUFFIX, imports it as out.safetensors, and returns the tokenizer.

    The first argument is the function `import_file` of a tokenizer.
    """

    def run(
        import_file: Callable[[Path, Path], Imported], content: Any, suffix: str
    ) -> VideoTokenizer:
        file, out = tmp_path / f"in{suffix}", tmp_path / "out.safetensors"
        if suffix == ".safetensors":
            save_file(content, file)
        else:
            torch.save(content, file)
        import_file(file, out)
        return load_tokenizer(out)

    return run


class Hostile:
    """When it is unpickled without protection, it makes a folder in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (tempfile.mkdtemp, (None, None, str(self.folder)))

    @property
    def has_run(self) -> bool:
        return any(self.folder.iterdir())


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    """An object for a file of `torch.save`. Its attribute `has_run` says whether code in the file was run."""
    folder = tmp_path / "made_by_hostile"
    folder.mkdir()
    return Hostile(folder)
