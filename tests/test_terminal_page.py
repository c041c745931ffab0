"""docs/terminal.md: its commands run on few clips and print what the page shows, except for numbers."""

from __future__ import annotations

import glob
import re
import shlex
import sys
from pathlib import Path

import pytest

from arvid.cli import main

PAGE = (Path(__file__).parents[1] / "docs/terminal.md").read_text()
FEW = ["--data.train.init_args.num_clips=16", "--data.val.init_args.num_clips=16"]


def recordings() -> list[tuple[int, list[str], str]]:
    """The terminal's columns of each recording, its command as arguments of `arvid`, and what it printed."""
    found = []
    pattern = r"^```text\n\$ (?:COLUMNS=(\d+) )?arvid (.*?)^```"
    for columns, block in re.findall(pattern, PAGE, re.MULTILINE | re.DOTALL):
        command, _, printed = block.replace("\\\n", "").partition("\n")
        found.append((int(columns or 80), shlex.split(command), printed))
    return found


def masked(printed: str) -> list[str]:
    """Lines without styles, the version, the machine, numbers, hashes, rules and the widths of columns."""
    text = re.sub(r"\x1b\[\d*m", "", printed)
    text = re.sub(r"^arvid \d.*?\.$", "arvid #.", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\b[0-9a-f]{12,16}\b|\d[\d,.:]*[kMG]?", "#", text)
    text = re.sub(r"[─┄]+", "─", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line]


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"TERM": "xterm", "ARVID_WEIGHTS": "weights", "TORCH_HOME": "weights"}  # none
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert [(command, columns) for columns, (command, *_), _ in recordings()] == [
        ("fit", 80),
        ("sample", 80),
        ("evaluate", 80),
        ("compare", 80),
        ("compare", 120),
        ("bench", 80),
        ("bench", 120),
        ("bench", 200),
    ]
    for columns, (command, *given), shown in recordings():
        monkeypatch.setenv("COLUMNS", str(columns))
        words = [w for word in given for w in (sorted(glob.glob(word)) if "*" in word else [word])]
        few = [*FEW, "--trainer.accelerator=cpu"] if command == "fit" else []
        assert main([command, *words, *few]) == 0
        assert masked(capsys.readouterr().out) == masked(shown)
        assert max(map(len, shown.splitlines())) <= columns
