"""Codebook use: share of codes and perplexity."""

from __future__ import annotations

import math

import pytest
import torch

from arvid.metrics.codebook import CodebookUse


def test_known_values() -> None:
    use = CodebookUse(8)
    use.update(torch.tensor([[0, 0], [3, 3]]))
    assert use.compute() == (2 / 8, pytest.approx(2))
    use.update(torch.tensor([7, 7, 7, 7]))  # frequencies 1/4, 1/4, 1/2
    share, perplexity = use.compute()
    assert share == 3 / 8
    assert perplexity == pytest.approx(math.exp(1.5 * math.log(2)))
    use.reset()
    use.update(torch.arange(8).view(1, 2, 2, 2))
    assert use.compute() == (1, pytest.approx(8))


def test_nothing_counted() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        CodebookUse(4).compute()
