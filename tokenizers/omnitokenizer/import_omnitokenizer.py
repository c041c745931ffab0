"""`arvid import omnitokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.tokenizers.omnitokenizer import published


class OmniTokenizerImporter(Importer):
    """Import a VQ tokenizer of OmniTokenizer: imagenet_k600.ckpt or another one for videos of
    https://huggingface.co/Daniel0724/OmniTokenizer."""

    suffix = ".safetensors"

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out)
