"""`arvid import cosmos-dv`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.cosmos_dv import published


class CosmosDVImporter(Importer):
    """Import a discrete video tokenizer of NVIDIA Cosmos: model.pt of nvidia/Cosmos-Tokenize1-DV8x16x16-720p or
    nvidia/Cosmos-Tokenize1-DV4x8x8-360p."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
