"""`arvid export nova`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Exporter
from arvid.paradigms.nova import pipeline


class NovaExporter(Exporter):
    """Export a model as a folder in the layout of NOVA's released pipelines, with model_index.json.

    The folder vae is written only for a published tokenizer. text_encoder and tokenizer are links to the folders that
    the model reads. The released code also needs the files __*__.py of a published folder: link or copy them.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--half", action="store_true", help="store weights in fp16")

    def run(self, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
        return pipeline.export_file(checkpoint, out, half=options.half)
