"""Compare several runs in one table and one self-contained web page.

Rows with different settings are refused, with a list of the differences. Runs that differ only in the training seed are
one row: mean and standard deviation over the seeds.

Files among the runs, such as logs that match a wildcard, are ignored.

examples:
  arvid compare runs/nova runs/next_block --out report
  arvid compare runs/demo/references/* runs/demo/n* --out report
  arvid compare runs/nova-seed* runs/next_block-seed* --out report
"""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--title", default="Comparison", help="heading of the page")
    parser.add_argument(
        "--allow-different-settings",
        action="store_true",
        help="compare rows with different settings; table and page then list the differences",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.report import tables
    from arvid.report.page import write_report

    folders = [path for path in options.runs if not path.is_file()]
    if not folders:
        raise UserError(f"{options.runs[0]} is a file. Give the folders of runs.")
    comparison = write_report(
        folders,
        options.out,
        allow_different_settings=options.allow_different_settings,
        title=options.title,
    )
    tables.show(comparison)
    print(f"\nWrote {options.out / 'index.html'} and table.md, .csv, .json, .tex beside it.")
    return 0
