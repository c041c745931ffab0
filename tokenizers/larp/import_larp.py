"""`arvid import larp`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.larp import published


class LarpImporter(Importer):
    """Import the tokenizer of LARP: model.safetensors of https://huggingface.co/hywang66/LARP-L-long-tokenizer."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
