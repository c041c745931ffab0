"""The README's table is the recorded result's, number by number."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = ("fd-sprites", "attribute-accuracy", "psnr")


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_every_row_of_the_result_stands_in_the_readme_with_its_values(readme: str) -> None:
    result = json.loads((ROOT / "docs/results/sprites.json").read_text())
    lines = {
        line.split("|")[1].strip(" *"): line for line in readme.splitlines() if line.startswith("|")
    }
    plain = {re.sub(r"\\(.)", r"\1", name): line for name, line in lines.items()}
    shown = [c for c in result["columns"] if c["key"].split("/")[-1] in SHOWN]
    assert len(result["rows"]) == 9
    assert len(shown) == 3
    for row in result["rows"]:
        line = next(text for name, text in plain.items() if name.startswith(row["name"]))
        for column in shown:
            cell = row["cells"].get(column["key"])
            if cell is not None:
                assert cell["text"] in line.replace("*", "")


def test_files_that_the_readme_names_exist(readme: str) -> None:
    names = re.findall(r"\]\((?!http)([^)#]+)\)", readme)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_commands_that_the_readme_names_exist(readme: str) -> None:
    from arvid.cli import COMMANDS

    named = set(re.findall(r"^    arvid (\w+)", readme, re.MULTILINE))
    assert named <= set(COMMANDS)
    assert {"demo", "fit", "sample", "evaluate", "compare"} <= named


def test_files_that_the_architecture_names_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    names = re.findall(r"`([\w./-]+\.(?:py|yaml))`", page)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []
