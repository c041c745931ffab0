"""The script for one GPU runs at its smallest on a CPU, and its page holds every row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = "speed/gpu"


def test_the_page_has_every_row(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WAYS", script.WAYS[:2])  # compiling takes a minute
    monkeypatch.setattr(script.nova, "compile_blocks", lambda model: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--scale=smoke", f"--out={tmp_path}"])
    script.main()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row for row in rows if "failed" in row] == []
    steps = [row for row in rows if row["what"].startswith("step")]
    assert len(steps) == 6
    for row in steps:
        assert row["seconds"] > 0
        assert row["utilisation"] > 0
        assert row["planned_gib"] > 0
    decoding = [row for row in rows if row["what"].startswith("decoding")]
    assert [row["what"].endswith("long cache") for row in decoding] == [False, False, True, True]
    assert all(row["times_bound"] > 1 for row in decoding)
    ids = next(row for row in rows if row["what"] == "ids")
    assert ids["note"] == "float32: 0.00% of ids change"
    assert "clip: NOVA, batch 1" in (tmp_path / "table.md").read_text()


def test_what_fails_or_comes_too_late_is_a_row(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large() -> None:
        raise RuntimeError("out of memory\nat line 3")

    rows = script.measured("encoding", too_large)
    assert rows == [{"what": "encoding", "failed": "RuntimeError out of memory"}]
    arguments = ["gpu", "--scale=smoke", f"--out={tmp_path}", "--minutes=1e-9"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["failed"] for row in rows} == {"left out: no time"}
