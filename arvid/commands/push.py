"""Publish a run on the Hugging Face Hub: weights as safetensors, records, clips and a model card.

The repository also holds the configuration of the training, with the paths of the data that it names. Log in first:
`hf auth login`, or set HF_TOKEN. Anyone can then load the model: arvid.load("hf://user/name").

examples:
  arvid push runs/nova user/nova-sprites --license apache-2.0
  arvid push runs/nova user/nova-sprites --out repository
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("name", metavar="USER/NAME", help="repository; made if it does not exist")
    parser.add_argument(
        "--license", metavar="NAME", help="licence of the weights, as the hub names it"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="only write the files into this folder"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.api.publishing import push, write_repository

    if options.out is not None:
        done = write_repository(options.run, options.name, options.out, licence=options.license)
    else:
        done = push(options.run, options.name, licence=options.license, private=options.private)
    print(f"Wrote {len(done.files)} files to {done.place}.")
    print(f'Load it with arvid.load("{options.out or f"hf://{options.name}"}").')
    return 0
