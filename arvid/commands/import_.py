"""Convert a published checkpoint to arvid's own format, with a check of every tensor.

Use the result wherever arvid takes a tokenizer or a generator's checkpoint. A file is refused if a tensor is missing,
left over or has another shape. `arvid import KIND --help` explains a kind.

examples:
  arvid import nbp-tokenizer magvit2_ucf.pt nbp-ucf.safetensors
  arvid import nbp ucf_base_nbp16_hybrid.ckpt nbp-ucf.ckpt --tokenizer nbp-ucf.safetensors --text llama_tokenizer
  arvid import nova nova-d48w1024-osp480 nova-osp480.ckpt
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from arvid import registry
from arvid.commands._kinds import add_kind_argument, parse_own
from arvid.errors import UserError

if TYPE_CHECKING:
    from arvid.importing import Imported, Importer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options. The importer of a kind declares its own."""
    add_kind_argument(parser, "importers")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the published checkpoint, or its folder")
    parser.add_argument(
        "out", type=Path, help="file to write: .ckpt for a generator, .safetensors for a tokenizer"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    importer: Importer = registry.get("importers", options.kind)()
    options = parse_own(importer, options, _add_files)
    if options.out.suffix != importer.suffix:
        raise UserError(f"{options.out}: the name of this output must end in {importer.suffix}.")
    print(_report(importer.run(options.file, options.out, options)))
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
