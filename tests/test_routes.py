"""The way of a prompt to an mp4 passes few files: a new file on it has to be worth its place."""

from __future__ import annotations

from pathlib import Path

from routes import files_of

from arvid.cli import main

MOST_FILES = 48
"""Files on the way of next-block prediction. Lower it when files are joined."""


def test_a_prompt_passes_few_files(trained_run: Path, tmp_path: Path) -> None:
    prompt = "a small red square moves left"
    arguments = ["sample", "--checkpoint", str(trained_run), "--prompt", prompt, "--count", "1"]
    files = files_of(lambda: main([*arguments, "--out", str(tmp_path)]))
    assert {"arvid/cli.py", "arvid/sampling/sample.py", "paradigms/next_block/paradigm.py"} <= files
    assert list(tmp_path.glob("*.mp4"))
    assert len(files) <= MOST_FILES, sorted(files)
