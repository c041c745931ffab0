"""docs/python.md and the notebooks as they stand, on small runs and with few clips."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
FEWER = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.clips_per_step=2",
]
SPRITES = ["--data.train.init_args.num_clips=4", "--data.val.init_args.num_clips=8"]
CLIPS = ["--data.train.init_args.clips_per_video=1", "--data.val.init_args.clips_per_video=4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, on the import path as it is in a notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("two_rows", None)


def with_few_clips(code: str) -> str:
    """Evaluations with 4 clips, whose protocols have names of their own."""
    code = re.sub(r'(evaluate\([^\n]*)"(\w+-generation)"', r'\1"\2", num_clips=4', code)
    return code.replace('"sprites-generation/', '"sprites-generation-4/')


def test_the_page_of_python(trained_run: Path, folder: Path) -> None:
    for name in ("nova", "next_block"):
        shutil.copytree(trained_run, folder / "runs" / name)
    page = (DOCS / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    known: dict[str, Any] = {}
    for block in blocks:
        exec(with_few_clips(block), known)
    assert known["clips"].shape == (1, 17, 32, 32, 3)
    assert known["tokens"].shape == (1, 5, 8, 8, 8)
    assert known["ids"].shape == (1, 5, 8, 8)
    assert [row["name"] for row in known["table"]] == ["nova", "next_block"]
    for made in ("samples/sheet.png", "report/index.html", "figures/training-curves-1.svg"):
        assert (folder / made).stat().st_size > 1000


def test_commands_of_the_page_exist() -> None:
    page = (DOCS / "python.md").read_text()
    commands = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in "".join(commands).splitlines():
        _, command, *_ = shlex.split(line)
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0


def run_command(line: str) -> None:
    """A `!arvid ...` line of a notebook, with a debug size and few steps."""
    joined = line.replace("\\\n", " ")
    given = shlex.split(joined.removeprefix("!").removeprefix("PYTHONPATH=. "))
    given = ["sizes/debug" if word == "sizes/tiny" else word for word in given]
    if given[1] == "fit":
        given += [*FEWER, *(SPRITES if "settings/sprites" in given else CLIPS)]
    assert main(given[1:]) == 0


def run_cells(notebook: Path, show: Callable[[Any], None]) -> None:
    """Execute the code cells in order; `show` gets the value of each last line, as a notebook would."""
    known: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        assert cell.get("outputs", []) == [], "notebooks are stored without outputs"
        source = with_few_clips("".join(cell["source"]))
        if cell["cell_type"] != "code":
            continue
        if source.startswith("!"):
            run_command(source)
        elif source.startswith("%%writefile "):
            name, _, content = source.removeprefix("%%writefile ").partition("\n")
            Path(name).write_text(content)
        else:
            *lines, last = source.splitlines()
            exec("\n".join(lines), known)
            try:
                code = compile(last, "cell", "eval")
            except SyntaxError:  # a statement
                exec(last, known)
            else:
                show(eval(code, known))


SLOW = {"own-clips": pytest.mark.slow}  # it trains a tokenizer and a generator


@pytest.mark.parametrize(
    "notebook", [pytest.param(p, id=p.stem, marks=SLOW.get(p.stem, ())) for p in NOTEBOOKS]
)
def test_notebooks(notebook: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, clip in enumerate(Sprites(12, size=64)):
        write_video(folder / f"videos/{'ab'[i % 2]}/{i}.mp4", clip.video, 8)
    shown: list[str] = []
    run_cells(notebook, lambda value: shown.append(getattr(value, "_repr_html_", value.__repr__)()))
    assert any("data:video/mp4;base64," in text for text in shown)
    assert any("<table>" in text for text in shown)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own-clips", "own-paradigm", "quick-start"]
