"""`arvid data DATASET OUT`: a subcommand for each published dataset, which turns a download into manifests."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arvid.data.prepare.facts import DATASETS, Facts
from arvid.downloading import download
from arvid.errors import UserError
from arvid.ranges import SHARE, at_least

if TYPE_CHECKING:
    from arvid.data.prepare.prepared import Summary

_LISTS = {"type": Path, "metavar": "PATH"}
_VAL_FRACTION = {"type": SHARE.number, "default": 0.1, "metavar": "SHARE"}
_COUNT = {"type": at_least(1).integer, "metavar": "N"}
OPTIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ucf101": {
        "lists": {
            **_LISTS,
            "help": "folder or zip file of trainlist01.txt, ... (default: in or beside the source)",
        },
        "val_fraction": {
            **_VAL_FRACTION,
            "help": "share of the recordings in val, if there are no lists (default: 0.1)",
        },
    },
    "kinetics600": {
        "lists": {
            **_LISTS,
            "help": "folder of train.csv, val.csv, test.csv (default: OUT/downloads, else the source)",
        },
    },
    "moving-mnist": {
        "num_train": {**_COUNT, "default": 10_000, "help": "training clips (default: 10000)"},
        "num_val": {**_COUNT, "default": 1_000, "help": "validation clips (default: 1000)"},
        "num_test": {**_COUNT, "default": 10_000, "help": "test clips (default: 10000)"},
        "num_frames": {**_COUNT, "default": 20, "help": "frames of a clip (default: 20)"},
        "size": {**_COUNT, "default": 64, "help": "height and width in pixels (default: 64)"},
        "seed": {
            "type": at_least(0).integer,
            "default": 0,
            "help": "seed of the rendering (default: 0)",
        },
    },
    "bair": {
        "camera": {
            "choices": ("aux1", "main"),
            "default": "aux1",
            "help": "camera (default: aux1)",
        },
    },
    "sky": {},
    "dmlab": {},
    "minecraft": {},
    "folder": {
        "val_fraction": {**_VAL_FRACTION, "help": "share of the videos in val (default: 0.1)"},
    },
}
"""Dataset -> argument of its `prepare` (besides source and out) -> keywords of `add_argument`."""


def add_preparations(actions: Any) -> None:
    """Declare a subcommand for each dataset."""
    for facts in DATASETS:
        parser = actions.add_parser(
            facts.name,
            help=f"prepare {facts.title.partition(':')[0]}",
            description=_description(facts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
        parser.add_argument("--source", type=Path, metavar="PATH", help="your download")
        if facts.remotes:
            parser.add_argument(
                "--download",
                action="store_true",
                help="download to OUT/downloads; with --source only the lists, if the dataset has any",
            )
        parser.add_argument(
            "--strict",
            action="store_true",
            help="fail if clips are missing or counts differ from the published ones",
        )
        for name, keywords in OPTIONS[facts.name].items():
            parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
        parser.set_defaults(function=run_preparation, facts=facts)


def _description(facts: Facts) -> str:
    counts = ", ".join(f"{what} {count:,}" for what, count in facts.counts.items())
    sections = {
        "page": facts.page,
        "licence": facts.licence,
        "get": facts.get,
        "source": facts.source,
        "counts": counts,
    }
    lines = [
        textwrap.fill(f"{name}: {text}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for name, text in sections.items()
        if text
    ]
    example = f"example:\n  arvid data {facts.name} data/{facts.name} --source PATH"
    return "\n".join([facts.title, "", *lines, "", example])


def run_preparation(options: argparse.Namespace) -> int:
    """Prepare a dataset and print a summary; returns the exit code."""
    from arvid.data.prepare.prepared import write_prepared

    facts: Facts = options.facts
    source = _source(options, facts)
    module = importlib.import_module(facts.module)
    chosen = {name: getattr(options, name) for name in OPTIONS[facts.name]}
    prepared = module.prepare(source, options.out, **chosen)
    summary = write_prepared(prepared, facts, options.out, source=source, strict=options.strict)
    print(_report(summary, options.out))
    return 0


def _source(options: argparse.Namespace, facts: Facts) -> Path:
    """Folder or archive of the clips, downloaded first if --download is given. Raises UserError if there is none."""
    may_download = getattr(options, "download", False)
    wanted = [r for r in facts.remotes if may_download and (r.is_list or options.source is None)]
    if options.source is None and not any(not remote.is_list for remote in wanted):
        raise UserError(f"Name your download with --source: {facts.source}. Get {facts.get}.")
    folder: Path = options.out / "downloads"
    for remote in wanted:
        path = folder / remote.file_name
        download(remote.url, path, checksum=remote.checksum, num_bytes=remote.num_bytes)
    return options.source or folder


def _report(summary: Summary, out: Path) -> str:
    lines = [
        f"{split}: {n['clips']:,} clips, {n['frames']:,} frames"
        for split, n in summary.splits.items()
    ]
    for split, reasons in summary.missing.items():
        lines += [
            f"{split}: {count:,} clips left out: {reason}" for reason, count in reasons.items()
        ]
    lines += [f"differs: {remark}" for remark in summary.remarks]
    return "\n".join([*lines, f"Manifests, split lists and dataset.json are in {out}."])
