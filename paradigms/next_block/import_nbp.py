"""`arvid import nbp`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.paradigms.next_block import published


class NbpImporter(Importer):
    """Import a generator of Next-Block Prediction: k600_base_nbp16.ckpt, ucf_base_nbp16_hybrid.ckpt and others."""

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--tokenizer",
            type=Path,
            required=True,
            help="its video tokenizer, written by `arvid import nbp-tokenizer`",
        )
        parser.add_argument(
            "--text", type=Path, help="folder of LLaMA's tokenizer, for models with prompts"
        )

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out, tokenizer=options.tokenizer, text=options.text)
