"""The speed benchmark of a training step: its plain network is the paradigm's, its page holds every row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arvid.contracts import Size

SCRIPT = "speed/training"
SIZE = Size(name="w16", dim=16, depth=2, num_heads=2)


def test_the_plain_network_has_the_paradigms_parameters(script: ModuleType) -> None:
    paradigm = script.build("next_token", SIZE).paradigm
    vocab = paradigm.spec.size
    plain = script.PlainGPT(SIZE, vocab, paradigm.grid.num_tokens)
    shapes = sorted(tuple(p.shape) for p in plain.parameters())
    own = sorted(tuple(p.shape) for p in paradigm.parameters() if p.requires_grad)
    own.remove((1, SIZE.dim))  # the begin-of-video token
    assert own == shapes


def test_the_plain_network_sees_only_what_came_before(script: ModuleType) -> None:
    plain = script.PlainGPT(SIZE, 50, 12)
    x = plain.tokens(torch.randint(50, (1, 12))) + plain.positions
    changed = x.clone()
    changed[:, 7] += torch.randn(SIZE.dim)  # a constant would be lost in the norm
    difference = (plain.blocks[0](changed) - plain.blocks[0](x)).abs().amax(-1)[0]
    assert difference[:7].max() == 0
    assert difference[7:].min() > 0


def test_the_page_has_every_row(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "--scale", "smoke", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [result["paradigm"] for result in results] == list(script.PARADIGMS)
    for result in results:
        assert list(result["seconds"]) == list(script.ROWS)
        assert min(result["seconds"].values()) > 0
    page = (tmp_path / "table.md").read_text()
    assert "CPU instructions" in page
    assert all(f"{row} (ms, ratio)" in page for row in script.ROWS)
