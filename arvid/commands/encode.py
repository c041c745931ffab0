"""Encode a setting's clips with its tokenizer, so that training finds the tokens in the cache.

`arvid fit` does this by itself; beforehand it is for machines where many processes will train.

example:
  arvid encode --config configs/settings/sprites.yaml --config configs/paradigms/nova.yaml \\
    --config configs/sizes/tiny.yaml
"""

from __future__ import annotations

import argparse

from arvid.training.cli import encode_clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", action="append", required=True, help="as for `arvid fit`; may be repeated"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    for folder in encode_clips(options.config):
        print(f"Tokens are in {folder}.")
    return 0
