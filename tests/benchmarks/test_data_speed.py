"""The speed benchmark of reading: its page holds every reader, installed or not; frames are checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from arvid.data.video import write_video

SCRIPT = "speed/data"


@pytest.fixture(autouse=True)
def in_this_process(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script's jobs run in this process."""

    def in_process(job: dict[str, Any], python: str = "") -> dict[str, Any]:
        monkeypatch.setenv("ARVID_CACHE", job["cache"])
        try:
            found: dict[str, Any] = script.JOBS[job["kind"]](job)
        except ImportError as error:
            return {"missing": str(error)}
        return found

    monkeypatch.setattr(script, "in_process", in_process)
    monkeypatch.setattr(script, "MINUTES", (0, 1))


def test_the_page(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchcodec.decoders", "decord"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    still = np.random.default_rng(0).integers(0, 255, (130, 150, 3), np.uint8)
    frames = np.stack([np.roll(still, 4 * i, axis=1) for i in range(30)])
    write_video(tmp_path / "clips" / "a.mp4", frames, 25)
    monkeypatch.setattr(script, "write_long", lambda path, minutes: write_long(path, still))
    given = [f"--data={tmp_path / 'clips'}", "--num-files=3", "--clips-per-file=2"]
    given += ["--only", "clips", "long", "many"]
    monkeypatch.setattr(sys, "argv", ["data", *given, f"--out={tmp_path / 'out'}"])
    script.main()
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.count("not run") == 3
    assert "| minute 1 |" in text
    assert "| 3 files, again |" in text
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    readers = {result["reader"]: result for result in report["clips"]}
    assert readers["arvid"]["others"] == readers["OpenCV"]["others"] == 0
    assert all(result["equal"] for result in report["long"])


def test_other_frames_are_counted(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.uint8(6)
    write_video(tmp_path / "a.mp4", np.broadcast_to(shades, (40, 32, 32, 3)).copy(), 25)
    clips = [(str(tmp_path / "a.mp4"), start) for start in (0, 5, 20)]
    np.save(tmp_path / "reference.npy", script.full_decode(clips))
    read = script.READERS["arvid"]([clips[0][0]])
    late = {"late": lambda _: lambda path, start: read(path, start + (start == 5))}
    monkeypatch.setattr(script, "READERS", late)
    job = {"reader": "late", "clips": clips, "reference": str(tmp_path / "reference.npy")}
    assert script.read_job(job)["others"] == 1


def write_long(path: Path, still: np.ndarray) -> None:
    """A minute and some frames, one a second."""
    write_video(path, np.stack([np.roll(still, i, axis=1) for i in range(80)]), 1)
