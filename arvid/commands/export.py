"""Write a model of arvid in the published layout of another code base, which can then load it.

`arvid export KIND --help` explains a kind.

example:
  arvid export nova runs/nova nova-mine
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arvid import registry
from arvid.commands._flags import add_trust_argument
from arvid.commands._kinds import add_kind_argument, parse_own
from arvid.trust import trusting

if TYPE_CHECKING:
    from arvid.importing import Exporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options. The exporter of a kind declares its own."""
    add_kind_argument(parser, "exporters")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="run folder or file")
    parser.add_argument("out", type=Path, help="folder to write to")
    add_trust_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.training.generator_module import checkpoint_path

    exporter: Exporter = registry.get("exporters", options.kind)()
    options = parse_own(exporter, options, _add_files)
    with trusting(options.trust):
        written = exporter.run(checkpoint_path(options.checkpoint), options.out, options)
    print(f"Wrote {', '.join(written)} to {options.out}.")
    return 0
