"""Check this installation: versions, devices, codecs, weights, and what to do about what is missing.

example:
  arvid doctor
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.doctor import main

    return main()
