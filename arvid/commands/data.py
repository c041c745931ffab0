"""Prepare a published dataset, or check the clips of a configuration before training.

A dataset's name prepares it from your download (--source), or downloads it first (--download, where its host allows
that). It writes manifests with captions, labels, frame counts, rates and sizes, split lists, and dataset.json with the
missing clips by reason. `arvid data NAME --help` says where to get it. All steps up to a training: docs/datasets.md.

`check` reads some clips of each set. If the configuration trains a generator on continuous tokens, it encodes them too.
It reports clips of one colour, repeated frames, and tokens whose standard deviation is not about 1. `arvid fit` gives
the same warnings at its start. The exit code is 1 if there is a warning.

examples:
  arvid data ucf101 data/ucf101 --source UCF-101
  arvid data moving-mnist data/moving-mnist --download
  arvid data folder data/mine --source videos
  arvid data check settings/sprites paradigms/nova sizes/tiny
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from arvid.commands._preparations import add_preparations

if TYPE_CHECKING:
    from arvid.data.guard import Findings

HEADINGS = ("set", "clips", "shape", "constant", "equal frames", "std of tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="report faults of the clips")
    check.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="as --config of `arvid fit`, later ones win"
    )
    check.set_defaults(function=_check)
    add_preparations(actions)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    code: int = options.function(options)
    return code


def _check(options: argparse.Namespace) -> int:
    from rich.table import Table

    from arvid.terminal import console
    from arvid.training.cli import check_data

    findings = check_data(options.configs)
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for found in findings:
        table.add_row(*_row(found))
    console().print(table)
    warnings = [warning for found in findings for warning in found.warnings]
    for warning in warnings:
        print(warning, file=sys.stderr)
    return 1 if warnings else 0


def _row(found: Findings) -> tuple[str, ...]:
    return (
        found.name,
        str(found.num_clips),
        "x".join(map(str, found.clip_shape)),
        "-" if found.constant is None else f"{len(found.constant)} of {found.looked_at}",
        "-" if found.equal_frames is None else f"{found.equal_frames:.0%}",
        "-" if found.token_std is None else f"{found.token_std:.3f}",
    )
