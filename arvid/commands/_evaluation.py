"""Options that `arvid evaluate` and its suites have in common."""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

from arvid.commands._sampling import add_dtype_argument
from arvid.processes import WAIT_MINUTES, launched
from arvid.ranges import above


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a pipeline of diffusers."""
    group = parser.add_argument_group("for --pipeline")
    group.add_argument(
        "--pipeline-options",
        type=json_object,
        default={},
        metavar="JSON",
        help="""what the pipeline is called with, e.g. '{"num_inference_steps": 30}'""",
    )
    add_dtype_argument(parser)


def json_object(text: str) -> dict[str, Any]:
    """An object of JSON. Raises ArgumentTypeError for anything else, and for NaN and infinity, which are no JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"must be JSON, not {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be an object in braces, not {text!r}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def add_download_argument(parser: argparse.ArgumentParser) -> None:
    """Whether published weights may be fetched."""
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch published weights that are missing; by default they are an error that says what to get",
    )


def add_shard_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Which of the samples (`what`, e.g. 'video') this process draws."""
    parser.add_argument(
        "--shard",
        type=shard,
        default=launched(),
        metavar="I/N",
        help=f"this process draws every N-th {what} from the I-th on, counted from 0 "
        "(default: as torchrun or srun says, or all)",
    )


def add_wait_argument(parser: argparse.ArgumentParser) -> None:
    """How long processes that share the work wait for each other."""
    parser.add_argument(
        "--wait-minutes",
        type=above(0).number,
        default=WAIT_MINUTES,
        metavar="N",
        help="under torchrun or srun: how long a process waits for the others before it gives up "
        f"(default: {WAIT_MINUTES:g})",
    )


def shard(text: str) -> tuple[int, int]:
    """I/N as index of this process and their number. Raises ArgumentTypeError for anything else."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"it is I/N with I below N, as in 0/4, not {text!r}")
    return int(index), int(count)
