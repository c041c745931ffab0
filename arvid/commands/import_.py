"""Turn a published checkpoint into arvid's own format, every tensor accounted for.

What comes out is named wherever arvid asks for a tokenizer, or for a generator's checkpoint. A file with a tensor
missing, left over or of another shape is refused.

kinds:
  nbp-tokenizer  magvit2_ucf.pt or magvit2_k600.pt of Next-Block Prediction
  nbp            its generators: k600_base_nbp16.ckpt, ucf_base_nbp16_hybrid.ckpt, ...
  nova           the folder of a pipeline of NOVA: nova-d48w1024-osp480, ... (its text encoder stays where it is)

examples:
  arvid import nbp-tokenizer magvit2_ucf.pt nbp-ucf.safetensors
  arvid import nbp ucf_base_nbp16_hybrid.ckpt nbp-ucf.ckpt --tokenizer nbp-ucf.safetensors --text llama_tokenizer
  arvid import nova nova-d48w1024-osp480 nova-osp480.ckpt
"""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from arvid.errors import UserError

if TYPE_CHECKING:
    from arvid.importing import Imported

IMPORTERS = {
    "nbp-tokenizer": "arvid.tokenizers.magvit_fsq.published",
    "nbp": "arvid.paradigms.next_block.published",
    "nova": "arvid.paradigms.nova.pipeline",
}
"""Module of each importer (see `arvid.importing`), by the kind of file that it reads."""
GENERATORS = ("nbp", "nova")
SUFFIX = ".safetensors"
GENERATOR_SUFFIX = ".ckpt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", choices=IMPORTERS, help="what the file is")
    parser.add_argument("file", type=Path, help="the published checkpoint, or its folder")
    written = f"{SUFFIX}; of a generator {GENERATOR_SUFFIX}"
    parser.add_argument("out", type=Path, help=f"file to write ({written})")
    parser.add_argument("--tokenizer", type=Path, help="a generator's video tokenizer")
    parser.add_argument(
        "--text", type=Path, help="folder of a generator's text tokenizer or encoder"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    generator = options.kind in GENERATORS
    suffix = GENERATOR_SUFFIX if generator else SUFFIX
    if options.out.suffix != suffix:
        raise UserError(f"{options.out}: what is written must be called *{suffix}.")
    if options.kind == "nbp" and options.tokenizer is None:
        raise UserError("This generator's file also needs its video tokenizer: give --tokenizer.")
    importer = importlib.import_module(IMPORTERS[options.kind])
    others = {"tokenizer": options.tokenizer, "text": options.text} if generator else {}
    print(_report(importer.import_file(options.file, options.out, **others)))
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
