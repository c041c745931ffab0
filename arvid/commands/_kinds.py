"""Commands whose first argument is a registered importer or exporter: `arvid import KIND`, `arvid export KIND`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from arvid import registry

if TYPE_CHECKING:
    from arvid.importing import Exporter, Importer


def add_kind_argument(parser: argparse.ArgumentParser, kind: registry.Kind) -> None:
    """Declare the name of a part; `parse_own` parses the arguments after it."""
    parser.add_argument("kind", metavar="KIND", help=f"one of: {', '.join(registry.names(kind))}")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the kind (see KIND --help)"
    )


def parse_own(
    part: Importer | Exporter,
    options: argparse.Namespace,
    add_shared: Callable[[argparse.ArgumentParser], None],
) -> argparse.Namespace:
    """Parse the arguments after the part's name.

    Args:
        part: declares its own options; its docstring is the help text.
        options: result of the outer parser.
        add_shared: declares the arguments that all parts of the command take.
    """
    parser = argparse.ArgumentParser(
        prog=f"arvid {options.command} {options.kind}",
        description=inspect.getdoc(type(part)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shared(parser)
    part.add_arguments(parser)
    return parser.parse_args(options.arguments)
