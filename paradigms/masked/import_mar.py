"""`arvid import mar`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.paradigms.masked import published


class MarImporter(Importer):
    """Import an image model of MAR: FILE is its checkpoint-last.pth, whose averaged weights are taken."""

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tokenizer", required=True, help="KL-16, as pretrained:FOLDER")

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return published.import_file(file, out, tokenizer=options.tokenizer)
