"""Run a benchmark script: a table or figure of a paper, or the demo.

example:
  arvid bench demo --scale demo --out runs/demo
"""

from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from pathlib import Path

import arvid
from arvid.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    known = _benchmarks()
    width = max(map(len, known))
    parser.epilog = "\n".join(
        ["benchmarks:", *(f"  {name:{width}}  {_summary(known[name])}" for name in sorted(known))]
    )
    parser.add_argument("name", help="name of the benchmark, see below")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the benchmark (try --help)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    known = _benchmarks()
    if options.name not in known:
        close = difflib.get_close_matches(options.name, known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        names = ", ".join(sorted(known))
        raise UserError(f"There is no benchmark {options.name!r}.{suggestion} Known: {names}.")
    script = known[options.name]
    sys.argv = [f"arvid bench {options.name}", *options.arguments]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _summary(script: Path) -> str:
    """First line of a script's docstring."""
    return script.read_text().partition('"""')[2].partition("\n")[0].removesuffix('"""')


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
