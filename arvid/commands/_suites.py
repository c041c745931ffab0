"""`arvid evaluate SUITE ...`: benchmark suites, each with its own command module."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from arvid.trust import trusting

_IMAGES = "arvid.commands.image_benchmarks"
_RELATIVES = "arvid.commands.vbench_relatives"
SUITES = {
    "vbench": "arvid.commands.vbench",
    "vbench-i2v": _RELATIVES,
    "vbench-long": _RELATIVES,
    "vbench-2": _RELATIVES,
    "physics-iq": "arvid.commands.physics_iq",
    "geneval": _IMAGES,
    "t2i-compbench": _IMAGES,
    "dpg-bench": _IMAGES,
}
"""Module with `add_arguments` and `run`. A module of several suites takes the suite's name as a second argument."""


def run_suite(suite: str, arguments: Sequence[str]) -> int:
    """Run a suite's command with the arguments after its name; returns the exit code."""
    module = importlib.import_module(SUITES[suite])
    name = [suite] if SUITES[suite] in (_IMAGES, _RELATIVES) else []
    parser = argparse.ArgumentParser(prog=f"arvid evaluate {suite}")
    module.add_arguments(parser, *name)
    options = parser.parse_args(arguments)
    with trusting(getattr(options, "trust", ())):
        code: int = module.run(options, *name)
    return code
