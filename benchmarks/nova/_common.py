"""Shared code of the benchmarks of NOVA's tables and figures: scales, variants, protocols, pictures, command line.

scales:
  demo    a CPU, minutes: sprites, or your own clips of 64x64 (--data) with your own tokenizer (--tokenizer). Metrics
          without weights are left out, and the page lists them
  lab     one GPU, hours: your own clips with your own tokenizer, the 0.3B network, 20,000 steps
  paper   the paper's configuration (nova-paper-video), 0.6B, on your own captioned clips (--data)
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arvid.contracts import UserError
from arvid.data.video import read_video
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.records import ResultRecord
from arvid.experiments.paper import Cell, script_parser, table
from arvid.experiments.variants import Variant, data_options, tokenizer_option, train, usable
from arvid.ranges import at_least
from arvid.sampling.contact_sheet import write_sheet

PARADIGM = "--model.init_args.paradigm.init_args"
PAPER = "nova-paper-video"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the network and options of the training."""

    size: str
    """Size of the network: a file in configs/sizes."""
    options: tuple[str, ...] = ()
    """Of `arvid fit`."""


SCALES = {
    "demo": Scale(size="tiny"),
    "lab": Scale(size="d48w768", options=("--trainer.max_steps=20000", "--data.batch_size=32")),
    "paper": Scale(size="d48w1024"),
}


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """A parser with the common options of benchmarks that train."""
    made = script_parser(
        f"{description}\n{__doc__.split(chr(10), 2)[2]}",
        out,
        SCALES,
        epilog="Other options (--trainer.max_steps=500, --data.batch_size=8) go to `arvid fit` of all that is trained. "
        "Repeat the same command to continue an interrupted benchmark.",
    )
    made.add_argument("--size", help="of the network, of configs/sizes (default: by scale)")
    made.add_argument("--data", type=Path, help="folder of class folders, or manifest")
    made.add_argument("--tokenizer", help="continuous tokenizer: file, run's checkpoint or name")
    made.add_argument(
        "--num-clips", type=at_least(2).integer, help="that are scored (default: the protocol's)"
    )
    return made


def read_arguments(made: argparse.ArgumentParser, *, own_clips: bool = True) -> argparse.Namespace:
    """The command line. Unknown options go to `fit_options`, for `arvid fit`.

    `own_clips`: whether scales other than demo need the user's clips. Raises UserError if they are missing.
    """
    options, unknown = made.parse_known_args()
    options.fit_options = unknown
    if own_clips and options.scale != "demo" and options.data is None:
        raise UserError(f"The scale {options.scale} needs your own clips: --data.")
    if options.scale != "paper" and options.data and not options.tokenizer and trains(options):
        raise UserError(
            "Your own clips need a tokenizer of their own: --tokenizer CHECKPOINT. Train one with "
            "`arvid fit --config tokenizers/clips-vae3d --config settings/clips-tokenizers`."
        )
    return options


def trains(options: argparse.Namespace) -> bool:
    """Whether a model must be trained: False if the command line names a finished run."""
    return getattr(options, "run", None) is None


# What is trained


def setting(options: argparse.Namespace) -> str:
    """Prefix of the names of the setting and its protocols, except at the scale paper."""
    return "clips" if options.data else "sprites"


def shared_options(options: argparse.Namespace) -> list[str]:
    """Common options of `arvid fit` for all variants. The user's options come last and win."""
    data = data_options(options.data) if options.data else []
    given = [*data, *SCALES[options.scale].options]
    if options.tokenizer:
        given.append(tokenizer_option(continuous=options.tokenizer))
    return [*given, *options.fit_options]


def variant(name: str, options: argparse.Namespace, **paradigm: str | float) -> Variant:
    """A NOVA variant with its own options."""
    size = options.size or SCALES[options.scale].size
    configs = (f"settings/{setting(options)}", "paradigms/nova", f"sizes/{size}")
    if options.scale == "paper":
        configs = (f"settings/{PAPER}", f"paradigms/{PAPER}", f"sizes/{size}")
    return Variant(
        name=name,
        configs=configs,
        options=tuple(f"{PARADIGM}.{key}={value}" for key, value in paradigm.items()),
    )


def trained_run(options: argparse.Namespace, *extra: str) -> Path:
    """The run that the command line names (--run), or else NOVA, trained in OUT/nova with `extra` options too."""
    if options.run is not None:
        return Path(options.run)
    train([variant("nova", options)], options.out, [*extra, *shared_options(options)])
    return Path(options.out / "nova")


# How it is scored


def protocol(options: argparse.Namespace) -> tuple[Protocol, list[str]]:
    """The setting's generation protocol with motion, and notes on metrics without weights."""
    found = get_protocol(f"{setting(options)}-generation", num_clips=options.num_clips)
    metrics = (*found.metrics, "motion")
    return usable(dataclasses.replace(found, name=f"{found.name}-and-motion", metrics=metrics))


def generated_clips(records: Sequence[ResultRecord], num: int) -> np.ndarray:
    """The first clips of the records, (clip, row, T, H, W, 3): for each clip the rows in order."""
    kept = [[read_video(r.path(entry.file)).frames for entry in r.clips[:num]] for r in records]
    return np.stack([np.stack(clips) for clips in kept], axis=1)


def write_clips(path: Path, records: Sequence[ResultRecord], num: int = 4) -> None:
    """Write the first clips of the records as a sheet, with the names of the rows and the prompts."""
    write_sheet(
        path,
        generated_clips(records, num),
        rows=[record.name for record in records],
        prompts=[clip.prompt for clip in records[0].clips[:num]],
    )


# Guidance, in the demos of the tables

GUIDANCE = (1.0, 3.0, 7.0)
"""Guidance scales: none, the demo's default, and that of the released evaluation scripts."""


def guided(run: Path) -> list[Variant]:
    """One variant of a run per guidance scale."""
    return [
        Variant(name=f"guidance {g:g}", checkpoint=run, sampling={"guidance": g}) for g in GUIDANCE
    ]


# Published tables


def read_published(path: Path) -> list[dict[str, str]]:
    """The rows of a published table as printed, by our metric names; "" if missing."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def published_table(
    path: Path, headings: Mapping[str, str], ours: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Lines of a table: the published rows, then ours by name, with the same metrics as columns."""
    published = read_published(path)
    columns = list(published[0])[1:]
    rows: list[list[Cell]] = [[row["model"], *(row[c] for c in columns)] for row in published]
    for name, cells in ours.items():
        rows.append([f"**{name}** (ours)", *(cells.get(column) for column in columns)])
    return table(("", *(headings.get(column, column) for column in columns)), rows)
