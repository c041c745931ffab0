"""`arvid import nova`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Imported, Importer
from arvid.paradigms.nova import pipeline


class NovaImporter(Importer):
    """Import NOVA: FILE is the folder of a released pipeline, such as nova-d48w1024-osp480.

    The text encoder is not copied; the checkpoint stores its path.
    """

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--tokenizer", type=Path, help="file of the video tokenizer (default: the folder's vae)"
        )
        parser.add_argument(
            "--text", type=Path, help="folder with text_encoder and tokenizer (default: FILE)"
        )

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        return pipeline.import_file(file, out, tokenizer=options.tokenizer, text=options.text)
