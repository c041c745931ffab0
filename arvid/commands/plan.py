"""What a training will cost, before anything runs: parameters, memory, FLOPs, days, sampling, encoding.

Takes the configurations and options of `arvid fit` (such as --data.batch_size 8). Nothing is trained, downloaded or
read from the data: networks run on tensors without numbers. Times are the FLOPs divided by a share (--utilisation) of
the device's published peak rate.

example:
  arvid plan --config settings/nova-paper-video --config paradigms/nova-paper-video --config sizes/d48w1024 --gpus 128
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from arvid.ranges import above, at_least

if TYPE_CHECKING:
    from arvid.planning.plan import Plan

UTILISATION = 0.4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config",
        "-c",
        action="append",
        required=True,
        help="configuration, as for `arvid fit`; may be repeated, later ones win",
    )
    parser.add_argument(
        "--device",
        default="H200",
        help="kind of GPU by name, such as A100 or RTX4090; `measured` times this machine (default: H200)",
    )
    parser.add_argument(
        "--gpus",
        type=at_least(1).integer,
        help="GPUs that train together (default: 8, or fewer if they cannot share the clips of a step)",
    )
    parser.add_argument(
        "--utilisation",
        type=above(0, at_most=1).number,
        default=UTILISATION,
        help=f"share of the device's peak rate that is reached (default: {UTILISATION})",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="CONFIG",
        help="configuration of the tokenizer, such as tokenizers/vae3d-base, if its file is not there yet",
    )
    parser.add_argument(
        "--clip",
        nargs=3,
        type=at_least(1).integer,
        metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="shape of the clips (default: from the data set's options)",
    )
    parser.add_argument(
        "--clips", type=at_least(1).integer, help="number of clips in the training set"
    )
    parser.add_argument("--json", action="store_true", help="print the main numbers as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    plan = _plan(options)
    if options.json:
        import json

        from arvid.planning.plan import as_record

        json.dump(as_record(plan), sys.stdout, indent=2)
        print()
    else:
        from arvid.planning.table import print_plan
        from arvid.terminal import console

        print_plan(plan, console())
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    from arvid.planning.devices import find_device
    from arvid.planning.plan import make_plan
    from arvid.planning.setting import read_setting
    from arvid.training.cli import parse_fit

    device = find_device(options.device)
    given = [part for name in options.config for part in ("--config", name)]
    config = parse_fit([*given, *options.fit_options])
    clip = tuple(options.clip) if options.clip else None
    setting = read_setting(config, options.config, clip_shape=clip, num_clips=options.clips)
    return make_plan(
        setting,
        device,
        num_gpus=options.gpus,
        utilisation=options.utilisation,
        tokenizer=options.tokenizer,
    )
