"""The picture of the orders follows the code that samples."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = "paradigms/orders"


def test_no_token_is_predicted_from_a_later_one(script: ModuleType) -> None:
    for order in script.ORDERS:
        steps = order.steps().ravel()
        sees = script.sees(order)
        assert not (sees == script.FINISHED)[steps[:, None] <= steps[None, :]].any(), order.title
        assert steps.min() >= 1


def test_every_frame_of_a_staggered_order_begins_later(script: ModuleType) -> None:
    finished = [script.denoised(stagger)[:, 0, 0].tolist() for stagger in (0, 2, 4)]
    assert finished == [[4, 4, 4], [4, 6, 8], [4, 8, 12]]


def test_the_picture_is_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["orders", "--out", str(tmp_path / "orders.png")])
    script.main()
    assert np.asarray(Image.open(tmp_path / "orders.png")).std() > 10
