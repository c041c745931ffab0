"""Write a model of arvid's in the layout that others publish it in, for their code to load.

kinds:
  nova  transformer, scheduler and VAE of a pipeline's folder; what else there is in a published one (text_encoder,
        tokenizer, model_index.json) is to be linked or copied from there

example:
  arvid export nova runs/nova nova-mine
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from arvid.commands._trust import add_trust_argument

EXPORTERS = {"nova": "arvid.paradigms.nova.pipeline"}
"""Module of each exporter, by what it writes; its function `export_file` returns what it wrote."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", choices=EXPORTERS, help="whose layout")
    parser.add_argument("checkpoint", type=Path, help="run folder or file")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--half", action="store_true", help="store weights in fp16")
    add_trust_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.training.generator_module import checkpoint_path

    exporter = importlib.import_module(EXPORTERS[options.kind])
    checkpoint = checkpoint_path(options.checkpoint)
    written = exporter.export_file(checkpoint, options.out, half=options.half)
    print(f"Wrote {', '.join(written)} to {options.out}.")
    return 0
