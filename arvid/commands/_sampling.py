"""Options of sampling, for the commands that generate."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from arvid.ranges import SAMPLING

if TYPE_CHECKING:
    from arvid.contracts import SamplingOptions


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that override the model's own."""
    group = parser.add_argument_group("how tokens are drawn (default: as the checkpoint says)")
    group.add_argument(
        "--guidance",
        type=SAMPLING["guidance"].number,
        help="classifier-free guidance scale, 1 is off",
    )
    group.add_argument(
        "--temperature", type=SAMPLING["temperature"].number, help="of discrete tokens, 0 is greedy"
    )
    group.add_argument(
        "--top-k", type=SAMPLING["top_k"].integer, help="discrete tokens: keep the k likeliest"
    )
    group.add_argument(
        "--top-p", type=SAMPLING["top_p"].number, help="discrete tokens: keep this probability mass"
    )
    group.add_argument(
        "--last-temperature",
        type=SAMPLING["last_temperature"].number,
        help="temperature of the last block, reached evenly (NBP)",
    )
    group.add_argument(
        "--rounds",
        type=SAMPLING["rounds"].integer,
        help="rounds that fill a block (NBP, trained to reveal)",
    )
    group.add_argument(
        "--compiled", action="store_true", default=None, help="compile the step on GPUs (NBP)"
    )
    group.add_argument(
        "--diffusion-steps",
        type=SAMPLING["diffusion_steps"].integer,
        help="continuous tokens: denoising steps",
    )
    group.add_argument(
        "--num-sets", type=SAMPLING["num_sets"].integer, help="sets that a frame is drawn in (NOVA)"
    )
    group.add_argument(
        "--overlap",
        type=SAMPLING["overlap"].integer,
        metavar="LATENT_FRAMES",
        help="clips longer than trained: a window moves along that keeps so many (NOVA)",
    )
    group.add_argument(
        "--guidance-min",
        type=SAMPLING["guidance_min"].number,
        help="guidance of a frame's first set (NOVA)",
    )
    group.add_argument(
        "--guidance-trunc",
        type=SAMPLING["guidance_trunc"].number,
        metavar="TIME",
        help="no guidance at times below (0 to 1000)",
    )
    group.add_argument(
        "--guidance-renorm",
        type=SAMPLING["guidance_renorm"].number,
        metavar="SHARE",
        help="how far guidance may be shrunk",
    )
    group.add_argument(
        "--image-guidance",
        type=SAMPLING["image_guidance"].number,
        help="guidance by the frames before (NOVA)",
    )
    group.add_argument(
        "--flow-shift", type=SAMPLING["flow_shift"].number, help="flow matching: shift of the times"
    )


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
