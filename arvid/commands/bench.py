"""Run a benchmark script: a table or figure of a paper, or the demo.

examples:
  arvid bench
  arvid bench demo --scale demo --out runs/demo
"""

from __future__ import annotations

import argparse
import ast
import difflib
import runpy
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import arvid
from arvid.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = f"benchmarks:\n{listing(_benchmarks())}"
    parser.add_argument("name", nargs="?", help="name of a benchmark, see below")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the benchmark (try --help)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    known = _benchmarks()
    if options.name is None:
        print(listing(known))
        return 0
    if options.name not in known:
        close = difflib.get_close_matches(options.name, known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        names = ", ".join(sorted(known))
        raise UserError(f"There is no benchmark {options.name!r}.{suggestion} Known: {names}.")
    script = known[options.name]
    sys.argv = [f"arvid bench {options.name}", *options.arguments]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def listing(scripts: Mapping[str, Path], width: int | None = None) -> str:
    """One line for each script: its name, and the first sentence of its docstring, cut to the terminal's width."""
    width = width or shutil.get_terminal_size((140, 24)).columns
    left = max(map(len, scripts), default=0) + 2
    lines = [
        textwrap.shorten(
            f"{name} {_about(path)}",
            max(width - left + len(name), left),
            placeholder=" ...",
            break_on_hyphens=False,
        )
        for name, path in sorted(scripts.items())
    ]
    return "\n".join(
        f"{name:<{left}}{rest}" for name, _, rest in (line.partition(" ") for line in lines)
    )


def _about(script: Path) -> str:
    """The first line of a script's docstring. The script is not run."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _benchmarks() -> dict[str, Path]:
    """Scripts by name: `demo` is benchmarks/demo/run.py, `nbp/table1` benchmarks/nbp/table1.py."""
    folder = Path(arvid.__file__).parent / "benchmarks"
    scripts = {
        str(p.relative_to(folder).with_suffix("")): p
        for p in folder.glob("*/*.py")
        if not p.name.startswith("_")
    }
    short = {n.removesuffix("/run"): p for n, p in scripts.items() if n.endswith("/run")}
    return {n: p for n, p in scripts.items() if not n.endswith("/run")} | short
