"""Shared fixtures: real data beside the checkout, and global state put back after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos and weights beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).parents[1] / ".." / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real videos ../shared, which is not here")
    return folder.resolve()


@pytest.fixture(autouse=True)
def restore_global_state() -> Iterator[None]:
    """Undo what a test did to the random state and the default dtype."""
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
