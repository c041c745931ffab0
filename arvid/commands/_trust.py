"""The option `--trust` of commands that read checkpoints."""

from __future__ import annotations

import argparse


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Packages that a checkpoint may name classes of."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="import classes of this package where the checkpoint names them; may be repeated. Classes of arvid and of "
        "packages that register theirs need no trust",
    )
