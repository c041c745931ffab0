"""Score trained runs under a protocol, with reference rows to read the numbers by.

example:
  arvid evaluate runs/nova runs/next_block --protocol sprites-generation --references runs/references
  arvid evaluate runs/nova --protocol sprites-prediction --metric lpips
  arvid evaluate --list-protocols
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from arvid.contracts import UserError
from arvid.evaluation.protocols import PROTOCOLS, get_protocol
from arvid.evaluation.rows import evaluate_references, evaluate_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--protocol", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="measure this in the place of the protocol's own metrics; may be repeated",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FOLDER",
        help="also score real clips, reconstructions, a repeated first frame and an untrained model",
    )
    parser.add_argument(
        "--num-clips", type=int, help="fewer clips than the protocol says: another protocol hash"
    )
    parser.add_argument("--list-protocols", action="store_true", help="print them all and stop")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if options.list_protocols:
        print(json.dumps({n: asdict(p) for n, p in sorted(PROTOCOLS.items())}, indent=1))
        return 0
    if not options.runs or not options.protocol:
        raise UserError("Name at least one run folder and one --protocol.")
    for name in options.protocol:
        protocol = get_protocol(name, num_clips=options.num_clips, metrics=options.metric)
        for run_folder in options.runs:
            record = evaluate_run(run_folder, protocol)
            values = ", ".join(f"{m.heading} {m.value:.4g}{m.unit}" for m in record.metrics)
            print(f"{record.name}: {values}")
        if options.references:
            evaluate_references(options.runs, protocol, options.references)
    return 0
