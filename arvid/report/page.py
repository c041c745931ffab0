"""The web page of a comparison: one self-contained index.html, and its tables as separate files.

The page contains videos (data URIs), style and script. A content security policy forbids network access and other
scripts. jinja2 escapes text from records.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import arvid
from arvid.evaluation.records import ResultRecord
from arvid.files import atomic_write
from arvid.report import panels, plots, tables
from arvid.report._clips import galleries
from arvid.report.cells import BLOCKS, Column
from arvid.report.comparison import Comparison

_HERE = Path(__file__).parent


def write_report(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    *,
    allow_different_settings: bool = False,
    title: str = "Comparison",
    max_prompts: int = 8,
) -> Comparison:
    """Compare runs and write index.html, table.md, table.csv, table.json and table.tex into `out`.

    The page holds the clips of the first `max_prompts` prompts of each protocol. Raises UserError as
    `Comparison.from_runs` does.
    """
    comparison = Comparison.from_runs(
        run_dirs, allow_different_settings=allow_different_settings, title=title
    )
    files = {  # the page offers these for download
        "table.md": tables.markdown(comparison),
        "table.csv": tables.to_csv(comparison),
        "table.json": tables.to_json(comparison),
        "table.tex": tables.tex(comparison),
    }
    files["index.html"] = render(comparison, out=Path(out), files=files, max_prompts=max_prompts)
    for name, content in files.items():
        with atomic_write(Path(out) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return comparison


def render(
    comparison: Comparison, *, out: Path, files: Mapping[str, str], max_prompts: int = 8
) -> str:
    """The page as HTML.

    Args:
        comparison: its content.
        out: folder of the page; links to the records are relative to it.
        files: file name -> content of the tables that the page holds for download.
        max_prompts: number of prompts of each protocol whose clips the page shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        blocks=[(title, _block(comparison.in_block(block))) for block, title in BLOCKS.items()],
        colours={n: panels.themed(c) for n, c in panels.colours(comparison.rows).items()},
        downloads={name: _download(name, text) for name, text in files.items()},
        folder_of=partial(_folder_of, out=out),
        plots=[(p, [Markup(svg) for svg in p.panels]) for p in plots.all_plots(comparison)],
        galleries=galleries(comparison, max_prompts),
        settings=_settings(comparison),
        provenance=_provenance(comparison),
        show=_show,
        version=arvid.__version__,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _block(columns: Sequence[Column]) -> dict[str, Any]:
    groups = [(name, list(members)) for name, members in groupby(columns, key=lambda c: c.group)]
    starts = {members[0].key for _, members in groups}
    return {"columns": columns, "groups": groups, "starts": starts}


def _settings(comparison: Comparison) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Each setting once: its hash, the rows under it and its keys."""
    found: dict[str, tuple[str, list[str], dict[str, Any]]] = {}
    for row in comparison.rows:
        for record in row.records:
            entry = found.setdefault(record.setting_hash, (record.setting_hash, [], record.setting))
            if row.name not in entry[1]:
                entry[1].append(row.name)
    return list(found.values())


def _provenance(comparison: Comparison) -> dict[str, list[str]]:
    """Code versions, hardware and dates of the records, without duplicates."""
    records = comparison.records
    return {
        "code": sorted({r.code_version for r in records if r.code_version}),
        "hardware": sorted({r.hardware for r in records if r.hardware}),
        "dates": sorted({r.created[:10] for r in records if r.created}),
    }


def _download(name: str, text: str) -> str:
    """A text file as a data URI."""
    media_type = mimetypes.guess_type(name)[0] or "text/plain"
    return f"data:{media_type};base64,{base64.b64encode(text.encode()).decode()}"


def _folder_of(record: ResultRecord, *, out: Path) -> str:
    """Link from the page to the folder that holds a record; empty for a record that is not in a file."""
    if record.folder is None:
        return ""
    return quote(Path(os.path.relpath(record.folder, out)).as_posix()) + "/"


def _show(value: Any) -> str:
    """Text of a value of a setting or protocol: strings unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
