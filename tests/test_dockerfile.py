"""The Dockerfile without a Docker daemon: its files exist, its lines call pip, its commands are arvid's."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from arvid.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def arguments(instruction: str) -> list[str]:
    """What follows an instruction, for each line that has it."""
    return [line.partition(" ")[2] for line in LINES if line.split()[0] == instruction]


def test_every_line_is_an_instruction_and_the_image_has_a_supported_python() -> None:
    known = {"FROM", "WORKDIR", "ENV", "ARG", "COPY", "RUN", "VOLUME", "ENTRYPOINT"}
    assert {line.split()[0] for line in LINES} == known
    (image,) = arguments("FROM")
    found = re.fullmatch(r"python:(\d+)\.(\d+)-slim", image)
    assert found is not None
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    least = re.fullmatch(r">=(\d+)\.(\d+)", wanted)
    assert least is not None
    assert [int(n) for n in found.groups()] >= [int(n) for n in least.groups()]


def test_copied_and_installed_files_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in arguments("COPY"):
        *sources, _ = copied.split()
        assert all((ROOT / source).exists() for source in sources)
        assert not any(fnmatch.fnmatch(s, pattern) for s in sources for pattern in ignored)
    needed = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "arvid", "benchmarks")
    assert not any(fnmatch.fnmatch(name, pattern) for name in needed for pattern in ignored)


@pytest.mark.parametrize("index", ["", "https://example.org/cpu"])
def test_the_lines_of_run_call_pip(index: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "pip"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH_INDEX": index}
    called = [
        subprocess.run(
            ["sh", "-euc", line],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for line in arguments("RUN")
    ]
    constrained = ["-c", "constraints.txt"]
    chosen = ["--extra-index-url", index] if index else []
    assert called == [
        ["install", *chosen, *constrained, "torch", "torchvision"],
        ["install", *constrained, "-e", "."],
    ]


def test_the_commands_that_it_names_are_commands_of_arvid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (entry,) = arguments("ENTRYPOINT")
    assert json.loads(entry) == ["arvid", "demo"]
    assert "docker build -t arvid . && docker run --rm arvid" in (ROOT / "README.md").read_text()
    runs = re.findall(r"^#   docker run .*? arvid(?: (.*?))?(?: *#.*)?$", TEXT, re.MULTILINE)
    assert runs == ["", "--scale quick", "arvid doctor"]  # after the image's name
    for given in runs:
        words = shlex.split(given)
        entered = words[1:] if words[:1] == ["arvid"] else ["demo", *words]
        with pytest.raises(SystemExit) as ended:
            main([*entered, "--help"])
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--scale {" in printed
    assert "quick" in printed
