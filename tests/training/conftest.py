"""Real LPIPS weights, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def squeeze(shared: Path) -> str:
    """File with the SqueezeNet weights of LPIPS."""
    path = shared / "weights/lpips_squeeze/squeezenet1_1_features.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the weights {path.name}, which are not here")
    return str(path)
