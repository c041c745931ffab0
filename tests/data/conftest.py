"""A tokenizer that needs no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from arvid.contracts import TokenSpec, VideoTokenizer


class Corners(VideoTokenizer):
    """Tokens are the pixels of a coarse grid. Counts the encoded clips."""

    def __init__(self, kind: str = "continuous") -> None:
        super().__init__()
        self.kind = kind
        self.num_encoded = 0

    @property
    def spec(self) -> TokenSpec:
        if self.kind == "discrete":
            return TokenSpec("discrete", 300, (1, 8, 8), True)
        return TokenSpec("continuous", 3, (1, 8, 8), True)

    def encode(self, video: Tensor) -> Tensor:
        self.num_encoded += len(video)
        tokens = video[..., ::8, ::8].permute(0, 2, 3, 4, 1).contiguous()
        return ((tokens[..., 0] + 1) * 149).long() if self.kind == "discrete" else tokens

    def decode(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def corners() -> Callable[..., Corners]:
    """Builds such a tokenizer, of continuous or discrete tokens."""
    return Corners


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache folder for the test."""
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
