"""Turn a published checkpoint into arvid's own format, every tensor accounted for.

What comes out is named wherever arvid asks for a tokenizer. A file with a tensor missing, left over or of another
shape is refused.

kinds:
  nbp-tokenizer  magvit2_ucf.pt or magvit2_k600.pt of Next-Block Prediction

example:
  arvid import nbp-tokenizer magvit2_ucf.pt nbp-ucf.safetensors
"""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path

from arvid.contracts import UserError
from arvid.importing import Imported

IMPORTERS = {
    "nbp-tokenizer": "arvid.tokenizers.magvit_fsq.published",
}
"""Module of each importer (see `arvid.importing`), by the kind of file that it reads."""
SUFFIX = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", choices=IMPORTERS, help="what the file is")
    parser.add_argument("file", type=Path, help="the published checkpoint")
    parser.add_argument("out", type=Path, help=f"file to write ({SUFFIX})")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if options.out.suffix != SUFFIX:
        raise UserError(f"{options.out}: what is written must be called *{SUFFIX}.")
    importer = importlib.import_module(IMPORTERS[options.kind])
    print(_report(importer.import_file(options.file, options.out)))
    print(f"Written to {options.out}.")
    return 0


def _report(imported: Imported) -> str:
    """A line for each tensor: its name in the file, its shape, its name in arvid; then the totals."""
    shapes = ["x".join(map(str, move.shape)) for move in imported.moves]
    width = max(len(move.source) for move in imported.moves)
    depth = max(map(len, shapes))
    lines = [
        f"{move.source:{width}}  {shape:{depth}}  -> {move.target}"
        for move, shape in zip(imported.moves, shapes, strict=True)
    ]
    numbers = sum(math.prod(move.shape) for move in imported.moves)
    lines.append(
        f"{len(imported.moves)} tensors, {numbers:,} numbers; none missing, none left over."
    )
    if imported.unused:
        lines.append(
            f"Besides the weights the file holds {', '.join(imported.unused)}: not needed."
        )
    return "\n".join(lines)
