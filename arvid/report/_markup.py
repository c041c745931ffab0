"""A comparison as Markdown and as LaTeX. All text from records is escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from arvid.report.cells import BLOCKS, Cell, Column, one_line
from arvid.report.comparison import Comparison

UNCERTAINTY = "±: standard error; over folds or training seeds, standard deviation."


def markdown(comparison: Comparison) -> str:
    """Markdown: warnings, two tables, remarks. Names and notes are escaped; HTML in them is shown as text."""
    parts = [f"# {_md(comparison.title)}", "", _md(comparison.summary)]
    parts += _notes(comparison.warnings)
    for block, title in BLOCKS.items():
        columns = comparison.in_block(block)
        if columns:
            parts += ["", f"## {title}", "", _markdown_table(comparison, columns)]
    parts += ["", f"Bold: the best trained row. {UNCERTAINTY}"]
    parts += [f"\nEvaluations: {_md(line)}" for line in comparison.legend]
    parts += _notes(comparison.remarks)
    return "\n".join(parts) + "\n"


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"\n> **Note.** {_md(note)}" for note in notes]


def tex(comparison: Comparison) -> str:
    """LaTeX: two booktabs tables (needs `\\usepackage{booktabs}`) and notes. All text from records is escaped."""
    parts = [f"% {line}" for line in [comparison.summary]]
    parts += [f"% note: {one_line(note)}" for note in comparison.notes]
    for block in BLOCKS:
        columns = comparison.in_block(block)
        if columns:
            parts += ["", _tex_table(comparison, columns)]
    parts += [f"\n\\par\\noindent Note: {_tex(note)}" for note in comparison.notes]
    return "\n".join(parts) + "\n"


def _markdown_table(comparison: Comparison, columns: Sequence[Column]) -> str:
    group = [_md(c.group) for c in columns]
    heading = [f"{_md(c.heading)}<br><sub>{g}</sub>" for c, g in zip(columns, group, strict=True)]
    lines = [["", *heading], [":--", *("--:" for _ in columns)]]
    for row in comparison.rows_with(columns):
        name = _md(comparison.display_name(row))
        name = f"*{name}*" if row.is_reference else name
        lines.append([name, *(_marked(row.cell(c), _md, "**{}**") for c in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tex_table(comparison: Comparison, columns: Sequence[Column]) -> str:
    groups = [(group, len(list(members))) for group, members in groupby(c.group for c in columns)]
    spans, rules, start = [], [], 2
    for group, size in groups:
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_tex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf" & {' & '.join(spans)} \\",
        " ".join(rules),
        rf" & {' & '.join(_tex(c.heading) for c in columns)} \\",
        r"\midrule",
    ]
    rows = comparison.rows_with(columns)
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before.is_reference and not row.is_reference:
            lines.append(r"\midrule")
        cells = (_marked(row.cell(c), _tex, r"\textbf{{{}}}") for c in columns)
        lines.append(rf"{_tex(comparison.display_name(row))} & {' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _marked(cell: Cell, escape: Callable[[str], str], best: str) -> str:
    shown = escape(cell.text)
    return best.format(shown) if cell.best else shown


def _md(value: str) -> str:
    value = one_line(value).replace("\\", "\\\\")
    for char in "|*_`[]#":
        value = value.replace(char, "\\" + char)
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def _tex(value: str) -> str:
    return "".join(_TEX.get(char, char) for char in one_line(value))
