"""List, download and check the published weights that metrics and benchmarks need.

examples:
  arvid weights list
  arvid weights get i3d-torchscript
  arvid weights check
"""

from __future__ import annotations

import argparse

from arvid.downloading import has_checksum
from arvid.errors import UserError
from arvid.weights import KNOWN, Weights, downloading, known, locate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=("list", "get", "check"),
        help="list: names, purposes and paths. get: download into place. check: verify the checksums of the files "
        "that are there; the exit code is 1 if one is wrong",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="weights (default: all, not for get)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if options.action == "get" and not options.names:
        raise UserError("Name the weights to download; `arvid weights list` lists them.")
    chosen = {name: known(name) for name in options.names or KNOWN}
    if options.action == "get":
        with downloading(True):
            for name in chosen:
                print(locate(name))
        return 0
    states = {
        name: _state(weights, verify=options.action == "check") for name, weights in chosen.items()
    }
    width = max(map(len, chosen))
    for name, weights in chosen.items():
        detail = weights.path if states[name] != "absent" else weights.purpose
        print(f"{name:{width}}  {states[name]:7}  {detail}")
    return 1 if "damaged" in states.values() else 0


def _state(weights: Weights, *, verify: bool) -> str:
    if not weights.path.is_file():
        return "absent"
    if not verify:
        return "there"
    return "ok" if has_checksum(weights.path, weights.digest) else "damaged"
