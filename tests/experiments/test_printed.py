"""A results page in a terminal: no line is too wide, no value is lost, no Markdown mark is left."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from arvid.experiments.paper import table, write_page
from arvid.experiments.printed import show_page
from arvid.terminal import console

ROWS = [["**nova** on a \\| b", 1.5, "**2.0 ± 0.1**"], ["*real*", None, "3 &lt; 4"]]
PAGE = "\n".join(
    [
        "# A title",
        "> A note that is longer than the forty columns of this terminal.",
        "- A sentence that is longer than the forty columns of this terminal, too.",
        *table(["", "FD ↓<br><sub>sprites</sub>", "a long heading"], ROWS),
        "Bold: the best. See [the page](docs/page.md).",
    ]
)


def printed(width: int) -> list[str]:
    file = io.StringIO()
    show_page(PAGE, console(file, width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_tables_are_aligned_and_lines_hang() -> None:
    lines = printed(80)
    assert lines[0] == "A title"
    assert lines[1].startswith("note: A note")
    row = next(line for line in lines if line.startswith("*nova on a | b"))
    assert row.split()[-4:] == ["1.5", "*2.0", "±", "0.1"]
    assert next(line for line in lines if line.startswith("real")).split()[1:] == ["3", "<", "4"]
    assert "*: the best. See the page." in lines


def test_a_wide_table_is_continued_below_itself() -> None:
    lines = printed(40)
    assert max(map(len, lines)) <= 40
    assert sum(line.startswith("*nova on a | b") for line in lines) == 2
    assert lines[2].startswith("      ")  # below the text of the note


def test_a_page_is_markdown_where_no_terminal_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_page(tmp_path, "Title", PAGE.splitlines(), [], {})
    assert "**2.0 ± 0.1**" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_page(tmp_path, "Title", PAGE.splitlines(), [], {})
    shown = capsys.readouterr().out
    assert "**" not in shown
    assert "**2.0 ± 0.1**" in (tmp_path / "table.md").read_text()
