"""`arvid import nbp-tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.magvit_fsq import published


class NbpTokenizerImporter(Importer):
    """Import a video tokenizer of Next-Block Prediction: magvit2_ucf.pt or magvit2_k600.pt."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
