"""Measure a real set once under a protocol, so that evaluations need no real videos.

`make` writes the features, captions and classes of the real clips to one file. `arvid evaluate --real FILE` then uses
the file in place of the videos, and computes the same values. The protocol's task must be generation (not prediction or
reconstruction), and its metrics must compare sets of clips, as FVD does. The file's name ends with a hash of its
content.

examples:
  arvid stats make --protocol nbp-ucf101-cg --real UCF-101 --real-list trainlist01.txt --out statistics
  arvid stats make --protocol stylegan-v-2048-16f --real fvd2048_16f.pkl
  arvid evaluate runs/nova --protocol nbp-ucf101-cg --real statistics/nbp-ucf101-cg-5f0e1c2d3a4b.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.commands._flags import add_download_argument
from arvid.errors import UserError
from arvid.ranges import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=("make",), help="make: measure and write the file")
    parser.add_argument(
        "--protocol", metavar="NAME", required=True, help="name of a protocol, or YAML file"
    )
    parser.add_argument(
        "--real",
        type=Path,
        metavar="PATH",
        required=True,
        help="real clips: folder of class folders, folder of videos, or manifest; or a statistics file of StyleGAN-V's "
        "or cd-fvd's code (.pkl), whose features were computed as the protocol says",
    )
    parser.add_argument(
        "--real-list", type=Path, metavar="FILE", help="use only the videos that this file lists"
    )
    parser.add_argument(
        "--num-clips",
        type=at_least(2).integer,
        metavar="N",
        help="another number of clips than the protocol's, as for `arvid evaluate`",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="metric whose features are kept, instead of the protocol's own; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("statistics"),
        help="folder of the file (default: statistics)",
    )
    add_download_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.evaluation.making_statistics import statistics_of
    from arvid.evaluation.protocols import get_protocol
    from arvid.weights import downloading

    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file. Give a folder.")
    protocol = get_protocol(options.protocol, num_clips=options.num_clips, metrics=options.metric)
    with downloading(options.download):
        path = statistics_of(options.real, protocol, options.out, split_list=options.real_list)
    print(f"Written to {path}. Use it with `arvid evaluate --real {path}`.")
    return 0
