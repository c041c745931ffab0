"""Score runs, folders of videos or diffusers pipelines under a protocol, or run a benchmark suite.

A protocol fixes everything that a number depends on: the real clips and their number, cutting, resizing, frames and
metrics. `--list-protocols` lists the protocols; docs/protocols.md explains them.

examples:
  arvid evaluate runs/nova runs/next_block --protocol sprites-generation --references runs/references
  arvid evaluate runs/nova --protocol nbp-ucf101-cg --real UCF-101 --real-list trainlist01.txt
  arvid evaluate --videos samples/ --real UCF-101 --protocol stylegan-v-2048-16f --out runs/theirs
  arvid evaluate --pipeline damo-vilab/text-to-video-ms-1.7b --real clips.jsonl --protocol arvid-1024-16f
  arvid evaluate runs/nova --protocol my-protocol.yaml --real videos/
  torchrun --nproc-per-node 8 -m -- arvid evaluate runs/nova --protocol arvid-1024-16f --real videos/
  arvid evaluate --list-protocols

benchmark suites, each with its own --help:
  arvid evaluate vbench | vbench-i2v | vbench-long | vbench-2 | physics-iq | geneval | t2i-compbench | dpg-bench ...

The same command, given again, resumes an interrupted evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from arvid.commands._flags import (
    add_download_argument,
    add_pipeline_arguments,
    add_trust_argument,
    add_wait_argument,
    chosen_dtype,
)
from arvid.errors import UserError
from arvid.processes import rank_and_count, sharing_processes
from arvid.ranges import at_least

if TYPE_CHECKING:
    from arvid.contracts import VideoDataset
    from arvid.evaluation.protocols import Protocol
    from arvid.evaluation.records import ResultRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add_sources(parser)
    _add_protocol(parser)
    _add_output(parser)
    add_trust_argument(parser)
    add_download_argument(parser)
    add_wait_argument(parser)
    add_pipeline_arguments(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is scored (one of the three)")
    what.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders of arvid")
    what.add_argument("--videos", type=Path, metavar="FOLDER", help="videos of any program")
    what.add_argument(
        "--pipeline",
        metavar="NAME",
        help="diffusers pipeline, hub name or folder: text to video, or image to video if the protocol gives a frame",
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help="name of a protocol, or YAML file with your own; may be repeated",
    )
    how.add_argument(
        "--list-protocols",
        action="store_true",
        help="print the protocols, one line each; with --protocol NAME: all parameters of NAME",
    )
    how.add_argument(
        "--real",
        type=Path,
        metavar="PATH",
        help="real clips: folder of class folders, folder of videos, or manifest (.csv, .jsonl, .parquet), "
        "or a file of `arvid stats make` in place of videos. Not needed if the protocol uses the validation set of the "
        "run's setting",
    )
    how.add_argument(
        "--real-list",
        type=Path,
        metavar="FILE",
        help="use only the real videos that this file lists, e.g. UCF-101's trainlist01.txt",
    )
    how.add_argument(
        "--num-clips",
        type=at_least(2).integer,
        metavar="N",
        help="another number of clips; the protocol then has another name, and results get their own columns",
    )
    how.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="metric to use instead of the protocol's own: a name, or your own package.module.Class; may be repeated",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("what is written")
    where.add_argument(
        "--references",
        type=Path,
        metavar="FOLDER",
        help="also score reference rows, in subfolders of this one: other real clips, reconstructions, a repeated "
        "first frame, an untrained model",
    )
    where.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder for the record of --videos or --pipeline (default: runs/<name>)",
    )
    where.add_argument("--name", help="name of the row of --videos or --pipeline in tables")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.evaluation.protocols import get_protocol
    from arvid.trust import trusting
    from arvid.weights import downloading

    if options.list_protocols:
        _list(options.protocol or [])
        return 0
    sources = [bool(options.runs), options.videos is not None, options.pipeline is not None]
    if sum(sources) != 1 or not options.protocol:
        raise UserError(
            "Name what is scored (run folders, --videos or --pipeline) and at least one --protocol."
        )
    changes = {"num_clips": options.num_clips, "metrics": options.metric}
    named = [metric.rpartition(".")[0] for metric in options.metric if "." in metric]
    with trusting(named), sharing_processes(options.wait_minutes), downloading(options.download):
        protocols = [get_protocol(name, **changes) for name in options.protocol]
        # All before the first evaluation, which may take hours: real clips may not fit a protocol.
        sets = [_real(options, protocol) for protocol in protocols]
        for protocol, real in zip(protocols, sets, strict=True):
            _evaluate(options, protocol, real)
    return 0


def _evaluate(options: argparse.Namespace, protocol: Protocol, real: VideoDataset | None) -> None:
    from arvid.evaluation.rows import evaluate_references

    for record in _records(options, protocol, real):
        _show(record)
    if options.references:
        evaluate_references(options.runs, protocol, options.references, real)


def _records(
    options: argparse.Namespace, protocol: Protocol, real: VideoDataset | None
) -> list[ResultRecord]:
    from arvid.evaluation.rows import evaluate_pipeline, evaluate_run, evaluate_videos

    if options.runs:
        dtype = chosen_dtype(options.dtype)
        return [evaluate_run(run, protocol, real, dtype=dtype) for run in options.runs]
    if real is None:
        raise UserError(f"Name the real clips with --real: {protocol.real_split}.")
    source = options.videos or Path(options.pipeline)
    name = options.name or source.resolve().name
    out = options.out or Path("runs") / name
    if options.videos:
        return [evaluate_videos(options.videos, protocol, real, out=out, name=name)]
    return [
        evaluate_pipeline(
            options.pipeline,
            protocol,
            real,
            out=out,
            name=name,
            dtype=chosen_dtype(options.dtype),
            arguments=options.pipeline_options,
        )
    ]


def _real(options: argparse.Namespace, protocol: Protocol) -> VideoDataset | None:
    if options.real is None:
        if options.real_list is not None:
            raise UserError("--real-list selects videos of --real: give --real too.")
        return None
    from arvid.evaluation.real_clips import real_set
    from arvid.evaluation.rows import require_videos

    real = real_set(protocol, options.real, options.real_list)
    if options.references:
        require_videos(real)
    return real


def _list(names: Sequence[str]) -> None:
    """Print one line per protocol, or all parameters of the named protocols, as YAML."""
    import yaml
    from rich.table import Table

    from arvid.evaluation.protocols import get_protocol, protocols
    from arvid.terminal import console

    if names:
        listed = {name: asdict(get_protocol(name)) for name in names}
        print(yaml.safe_dump(json.loads(json.dumps(listed)), sort_keys=False, width=120), end="")
        return
    table = Table("protocol", "task", "clips", "what it is", box=None, pad_edge=False)
    for name, protocol in protocols().items():
        clips = "all" if protocol.num_clips is None else f"{protocol.num_clips:,}"
        table.add_row(name, protocol.task, clips, protocol.summary)
    console().print(table)
    print("\nAll parameters of a protocol: arvid evaluate --list-protocols --protocol NAME")


def _show(record: ResultRecord) -> None:
    from arvid.terminal import wrapped

    if rank_and_count()[0] == 0:
        values = ", ".join(f"{m.heading} {m.value:.4g}{m.unit}" for m in record.metrics)
        print(wrapped(f"{record.name}: {values}", indent=2))
