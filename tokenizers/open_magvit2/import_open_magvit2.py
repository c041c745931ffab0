"""`arvid import open-magvit2`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.open_magvit2 import published


class OpenMagvit2Importer(Importer):
    """Import the video tokenizer of Open-MAGVIT2: video_128_262144.ckpt."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
