"""Options of sampling, for the commands that generate."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arvid.contracts import SamplingOptions


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that override the model's own."""
    group = parser.add_argument_group("how tokens are drawn (default: as the checkpoint says)")
    group.add_argument("--guidance", type=float, help="classifier-free guidance scale, 1 is off")
    group.add_argument("--temperature", type=float, help="of discrete tokens, 0 is greedy")
    group.add_argument("--top-k", type=int, help="discrete tokens: keep the k likeliest")
    group.add_argument("--top-p", type=float, help="discrete tokens: keep this probability mass")
    group.add_argument(
        "--last-temperature", type=float, help="temperature of the last block, reached evenly (NBP)"
    )
    group.add_argument(
        "--rounds", type=int, help="rounds that fill a block (NBP, trained to reveal)"
    )
    group.add_argument(
        "--compiled", action="store_true", default=None, help="compile the step on GPUs (NBP)"
    )
    group.add_argument("--diffusion-steps", type=int, help="continuous tokens: denoising steps")
    group.add_argument("--num-sets", type=int, help="sets that a frame is drawn in (NOVA)")
    group.add_argument(
        "--overlap",
        type=int,
        metavar="LATENT_FRAMES",
        help="clips longer than trained: a window moves along that keeps so many (NOVA)",
    )
    group.add_argument("--guidance-min", type=float, help="guidance of a frame's first set (NOVA)")
    group.add_argument(
        "--guidance-trunc",
        type=float,
        metavar="TIME",
        help="no guidance at times below (0 to 1000)",
    )
    group.add_argument(
        "--guidance-renorm", type=float, metavar="SHARE", help="how far guidance may be shrunk"
    )
    group.add_argument("--image-guidance", type=float, help="guidance by the frames before (NOVA)")
    group.add_argument("--flow-shift", type=float, help="flow matching: shift of the times")


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """The numbers that a model or pipeline is given its weights in."""
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="numbers that generators and pipelines compute with; tokenizers keep float32",
    )


def sampling_options(options: argparse.Namespace, default: SamplingOptions) -> SamplingOptions:
    """The model's options with those given on the command line put in."""
    names = {field.name for field in dataclasses.fields(default)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})
