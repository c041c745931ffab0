"""The tables of a comparison in each of their forms."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arvid.evaluation.records import ResultRecord
from arvid.report import tables
from arvid.report.comparison import Comparison

FORMS = (tables.text, tables.markdown, tables.tex, tables.to_csv, tables.to_json)


@pytest.fixture(scope="module")
def comparison(runs: list[Path]) -> Comparison:
    return Comparison.from_runs(runs, title="Sprites")


def test_a_terminal_gets_its_width_and_the_best_in_bold(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.show(comparison)
    assert capsys.readouterr().out == tables.text(comparison)
    for name, value in {"COLUMNS": "70", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tables.show(comparison)
    shown = capsys.readouterr().out
    assert re.search(r"\x1b\[1m *\*61\.3 ± 2\.0\x1b\[0m", shown)
    assert re.sub(r"\x1b\[\d+m", "", shown) == tables.text(comparison, 70)


@pytest.mark.parametrize("width", [140, 100, 60])
def test_text_fits_the_terminal_and_holds_every_number(comparison: Comparison, width: int) -> None:
    shown = tables.text(comparison, width)
    table = shown[: shown.index("* best")].splitlines()[1:]
    assert max(map(len, table)) <= width
    texts = [cell.text for row in comparison.rows for cell in row.cells.values()]
    assert all(text in shown for text in texts)
    assert "*61.3 ± 2.0" in shown


def test_text_and_markdown_have_warnings_above_the_tables_and_remarks_below(
    comparison: Comparison,
) -> None:
    told = replace(comparison, warnings=("a warning",), remarks=("a remark",))
    for shown in (tables.text(told), tables.markdown(told)):
        first, last = shown.index("Quality"), shown.rindex("Cost")
        assert shown.index("a warning") < first
        assert shown.index("a remark") > last


def test_headings_break_between_words_only(comparison: Comparison) -> None:
    renamed = replace(comparison.columns[0], label="FD (EfficientNet)", unit=None)
    columns = (renamed, *comparison.columns[1:])
    assert "(EfficientNet)" in tables.text(replace(comparison, columns=columns))


def test_text_has_one_table_per_block_where_there_is_room(comparison: Comparison) -> None:
    lines = tables.text(comparison, 140).splitlines()
    assert sum(line.startswith("nova (continuous)") for line in lines) == 2
    rule = next(line for line in lines if line.startswith("───"))
    assert lines[lines.index(rule) + 1].startswith("real ")


def test_markdown_is_two_tables_with_the_best_in_bold(comparison: Comparison) -> None:
    shown = tables.markdown(comparison)
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    quality = [line for line in rows if line.count(" | ") == len(comparison.in_block("quality"))]
    assert len(quality) == 2 + 7
    assert "| nova (continuous) | **61.3 ± 2.0** |" in shown
    assert "| *real* | 1.2 ± 0.04 |" in shown


def test_csv_holds_the_numbers_as_measured(comparison: Comparison) -> None:
    rows = {r["name"]: r for r in csv.DictReader(io.StringIO(tables.to_csv(comparison)))}
    assert float(rows["nova"]["sprites-t2v/fd-sprites"]) == 61.3
    assert float(rows["nova"]["sprites-t2v/fd-sprites spread"]) == pytest.approx(61.3 / 30)
    assert rows["nova"]["token_type"] == "continuous"
    assert rows["real"]["sprites-fp/psnr"] == ""
    assert rows["real"]["row"] == "reference"


def test_json_holds_texts_and_numbers(comparison: Comparison) -> None:
    table = json.loads(tables.to_json(comparison))
    nova = next(row for row in table["rows"] if row["name"] == "nova")
    expected = {"text": "61.3 ± 2.0", "value": 61.3, "count": 256, "best": True}
    assert expected.items() <= nova["cells"]["sprites-t2v/fd-sprites"].items()
    assert table["protocols"]["sprites-t2v"]["guidance"] == 2.0
    assert {r["setting_hash"] for r in nova["records"]} == set(table["setting_hashes"])


def test_tex_is_balanced_and_escaped(comparison: Comparison) -> None:
    shown = tables.tex(comparison)
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 2
    assert r"next\_block (discrete) & 74.9 $\pm$ 2.5 &" in shown
    assert r"\textbf{61.3 $\pm$ 2.0}" in shown
    for line in shown.splitlines():
        if line.endswith(r"\\") and not line.lstrip().startswith(r"& \multicolumn"):
            assert line.count(" & ") in (len(comparison.in_block(b)) for b in ("quality", "cost"))


@pytest.fixture
def hostile(
    make_records: Callable[..., list[ResultRecord]], save_run: Callable[..., Path], tmp_path: Path
) -> Comparison:
    """A row whose name is markup in every form, of a setting of its own."""
    name = "<b>|$x_1$\n\x1b[31m\\input{a}"
    changed = [
        replace(record, name=name, setting={"a": 1}, setting_hash="x")
        for record in make_records("next_token")
    ]
    runs = [save_run(tmp_path / "a", make_records("nova")), save_run(tmp_path / "b", changed)]
    return Comparison.from_runs(runs, allow_different_settings=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_that_settings_differ(
    hostile: Comparison, form: Callable[[Comparison], str]
) -> None:
    assert "different settings" in form(hostile)


def test_names_are_escaped(hostile: Comparison) -> None:
    assert "\x1b" not in tables.text(hostile) + tables.markdown(hostile) + tables.tex(hostile)
    assert "<b>" not in tables.markdown(hostile)
    assert r"\textless{}b\textgreater{}|\$x\_1\$" in tables.tex(hostile)
    printed = [line for line in tables.tex(hostile).splitlines() if not line.startswith("%")]
    assert not any(r"\input{" in line for line in printed)
    assert len(list(csv.DictReader(io.StringIO(tables.to_csv(hostile))))) == 2
