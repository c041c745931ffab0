"""Encode a setting's clips with its tokenizer into token shards, in the cache of `arvid fit` or in another folder.

`arvid fit` fills the cache itself. Use this command before many trainings on one machine, or to copy the tokens to
machines without the videos. Existing shards are not made again, so an interrupted command can be repeated. Several
processes may share the work: under torchrun or srun, or anywhere with --shard.

examples:
  arvid encode --config settings/sprites --config paradigms/nova --config sizes/tiny
  torchrun --nproc-per-node 8 -m -- arvid encode --config clips.yaml --out shards

To train on the folder, or on a copy of it on disk or in object storage, name it instead of the clips (also for val):
  arvid fit --config clips.yaml --data.train arvid.data.token_shards.TokenShards \\
    --data.train.init_args.path s3://bucket/shards/train
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from arvid.errors import UserError
from arvid.processes import launched, take_own_gpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", action="append", required=True, help="as for `arvid fit`; may be repeated"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the shards, in train and val (default: the cache)"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="encode the I-th of N parts, I from 1 to N (default: all)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.training.cli import encode_clips

    take_own_gpu()
    share = _share(options.shard) if options.shard else launched()
    missing = encode_clips(options.config, out=options.out, share=share)
    if not missing:
        raise UserError("The clips of this configuration are token shards already.")
    for folder, count in missing.items():
        left = f", except {count} that other parts make" if count else ""
        print(f"Token shards are in {folder}{left}.")
    return 0


def _share(given: str) -> tuple[int, int]:
    """'2/8' as (1, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    part, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= count:
        raise UserError(f"--shard must be I/N with I from 1 to N, such as 1/4, not {given!r}.")
    return part - 1, count
