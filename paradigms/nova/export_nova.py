"""`arvid export nova`."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Exporter
from arvid.paradigms.nova import pipeline


class NovaExporter(Exporter):
    """Export transformer, scheduler and VAE in the layout of NOVA's released pipelines.

    Link or copy the rest from a published folder: text_encoder, tokenizer, model_index.json.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--half", action="store_true", help="store weights in fp16")

    def run(self, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
        return pipeline.export_file(checkpoint, out, half=options.half)
