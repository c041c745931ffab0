"""Flags that several commands share."""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

from arvid.processes import WAIT_MINUTES, launched, rank_and_count
from arvid.ranges import above


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """`--trust`: packages whose unregistered classes a checkpoint may name."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="import classes of this package if the checkpoint names them; may be repeated. Classes of arvid and "
        "registered classes of other packages need no trust",
    )


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """`--dtype`: type of a generator's or pipeline's weights."""
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="type of the weights of generators and pipelines; tokenizers keep float32. auto: bfloat16 on GPUs, "
        "float32 on CPUs",
    )


def chosen_dtype(asked: str) -> str:
    """The type that `--dtype` means. `auto` on a GPU also allows TF32 products in what stays float32, and says so."""
    if asked != "auto":
        return asked
    import torch

    cuda = torch.cuda
    if not (cuda.is_available() and cuda.is_bf16_supported(including_emulation=False)):
        return "float32"
    torch.set_float32_matmul_precision("high")
    if rank_and_count()[0] == 0:
        print("Precision: bfloat16 weights, TF32 products elsewhere. For float32: --dtype float32.")
    return "bfloat16"


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """`--pipeline-options` and `--dtype`: options of a diffusers pipeline."""
    group = parser.add_argument_group("for --pipeline")
    group.add_argument(
        "--pipeline-options",
        type=json_object,
        default={},
        metavar="JSON",
        help="""keyword arguments of the pipeline's call, e.g. '{"num_inference_steps": 30}'""",
    )
    add_dtype_argument(parser)


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ArgumentTypeError for other text, and for NaN and infinity, which are not JSON."""
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
    """`--download`: allow downloads of published weights."""
    parser.add_argument(
        "--download",
        action="store_true",
        help="download missing published weights; without it they are an error that says where to get them",
    )


def add_shard_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--shard`: the samples (`what`, e.g. 'video') that this process generates."""
    parser.add_argument(
        "--shard",
        type=shard,
        default=launched(),
        metavar="I/N",
        help=f"generate every N-th {what}, starting at index I (from 0) "
        "(default: rank and number of processes under torchrun or srun, else all)",
    )


def shard(text: str) -> tuple[int, int]:
    """Parse I/N: index of this process and number of processes. Raises ArgumentTypeError for other text."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I below N, as in 0/4, not {text!r}")
    return int(index), int(count)


def add_wait_argument(parser: argparse.ArgumentParser) -> None:
    """`--wait-minutes`: how long processes that share the work wait for each other."""
    parser.add_argument(
        "--wait-minutes",
        type=above(0).number,
        default=WAIT_MINUTES,
        metavar="N",
        help="under torchrun or srun: minutes that a process waits for the others before it fails "
        f"(default: {WAIT_MINUTES:g})",
    )
