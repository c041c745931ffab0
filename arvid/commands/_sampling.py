"""Options of sampling, for the commands that generate."""

from __future__ import annotations

import argparse
import dataclasses

from arvid.contracts import SamplingOptions


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that override the model's own."""
    group = parser.add_argument_group("how tokens are drawn (default: as the checkpoint says)")
    group.add_argument("--guidance", type=float, help="classifier-free guidance scale, 1 is off")
    group.add_argument("--temperature", type=float, help="of discrete tokens, 0 is greedy")
    group.add_argument("--top-k", type=int, help="discrete tokens: keep the k likeliest")
    group.add_argument("--top-p", type=float, help="discrete tokens: keep this probability mass")
    group.add_argument("--diffusion-steps", type=int, help="continuous tokens: denoising steps")


def sampling_options(options: argparse.Namespace, default: SamplingOptions) -> SamplingOptions:
    """The model's options with those given on the command line put in."""
    names = ("guidance", "temperature", "top_k", "top_p", "diffusion_steps")
    given = {name: getattr(options, name) for name in names}
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})
