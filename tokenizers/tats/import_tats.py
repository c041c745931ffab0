"""`arvid import tats`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.tats import published


class TatsImporter(Importer):
    """Import a VQGAN of TATS: the files "VQGAN" and "Video-VQGAN" at https://github.com/songweige/TATS."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
