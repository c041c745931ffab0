"""What the benchmarks of NOVA's tables and figures have in common: scales, variants, protocols, pictures, command line.

scales:
  demo    a CPU, minutes: sprites, or one's own clips of 64x64 (--data) with one's own tokenizer (--tokenizer), scored
          by what has its weights; the page says what was left out
  lab     one GPU, hours: one's own clips with one's own tokenizer, the 0.3B network, 20,000 steps
  paper   the paper's configuration (nova-paper-video), 0.6B, on one's own captioned clips (--data)
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
from arvid.experiments.paper import Cell, table
from arvid.experiments.variants import Variant, data_options, tokenizer_option, usable
from arvid.ranges import at_least

PARADIGM = "--model.init_args.paradigm.init_args"
PAPER = "nova-paper-video"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    size: str
    """Of the network: a file of configs/sizes."""
    options: tuple[str, ...] = ()
    """Of `arvid fit`."""


SCALES = {
    "demo": Scale(size="tiny"),
    "lab": Scale(size="d48w768", options=("--trainer.max_steps=20000", "--data.batch_size=32")),
    "paper": Scale(size="d48w1024"),
}


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """The options that all have which train."""
    made = argparse.ArgumentParser(
        description=f"{description}\n{__doc__.split(chr(10), 2)[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options (--trainer.max_steps=500, --data.batch_size=8) go to `arvid fit` of all that is trained. "
        "An interrupted benchmark goes on where it was when the same command is given again.",
    )
    made.add_argument("--scale", choices=sorted(SCALES), default="demo")
    made.add_argument("--size", help="of the network, of configs/sizes (default: by scale)")
    made.add_argument("--data", type=Path, help="folder of class folders, or manifest")
    made.add_argument("--tokenizer", help="continuous tokenizer: file, run's checkpoint or name")
    made.add_argument(
        "--num-clips", type=at_least(2).integer, help="that are scored (default: the protocol's)"
    )
    made.add_argument("--out", type=Path, default=Path(out))
    return made


def read_arguments(made: argparse.ArgumentParser, *, own_clips: bool = True) -> argparse.Namespace:
    """The command line; `fit_options` is what it does not know and `arvid fit` should.

    `own_clips`: whether scales but the demo train on one's own clips. Raises UserError where these are missing.
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
    """Whether there is something to train: not where the command line names a finished run."""
    return getattr(options, "run", None) is None


# What is trained


def setting(options: argparse.Namespace) -> str:
    """What the names of the setting and of its protocols begin with, but at the scale paper."""
    return "clips" if options.data else "sprites"


def shared_options(options: argparse.Namespace) -> list[str]:
    """Options of `arvid fit` that all variants share; the user's own come last and win."""
    data = data_options(options.data) if options.data else []
    given = [*data, *SCALES[options.scale].options]
    if options.tokenizer:
        given.append(tokenizer_option(continuous=options.tokenizer))
    return [*given, *options.fit_options]


def variant(name: str, options: argparse.Namespace, **paradigm: str | int) -> Variant:
    """NOVA, with options of its own where they differ."""
    size = options.size or SCALES[options.scale].size
    configs = (f"settings/{setting(options)}", "paradigms/nova", f"sizes/{size}")
    if options.scale == "paper":
        configs = (f"settings/{PAPER}", f"paradigms/{PAPER}", f"sizes/{size}")
    return Variant(
        name=name,
        configs=configs,
        options=tuple(f"{PARADIGM}.{key}={value}" for key, value in paradigm.items()),
    )


# How it is scored


def protocol(options: argparse.Namespace) -> tuple[Protocol, list[str]]:
    """The setting's protocol for generation, with motion, and what was left out for want of weights."""
    found = get_protocol(f"{setting(options)}-generation", num_clips=options.num_clips)
    metrics = (*found.metrics, "motion")
    return usable(dataclasses.replace(found, name=f"{found.name}-and-motion", metrics=metrics))


def generated_clips(records: Sequence[ResultRecord], num: int) -> np.ndarray:
    """The first clips that records keep, (clip, row, T, H, W, 3): of each clip the rows' in their order."""
    kept = [[read_video(r.path(entry.file)).frames for entry in r.clips[:num]] for r in records]
    return np.stack([np.stack(clips) for clips in kept], axis=1)


# Guidance, in the demos of the tables

GUIDANCE = (1.0, 3.0, 7.0)
"""Without, as the demo's models are sampled, and as the released evaluation scripts sample theirs."""


def guided(run: Path) -> list[Variant]:
    """A run sampled with each guidance."""
    return [
        Variant(name=f"guidance {g:g}", checkpoint=run, sampling={"guidance": g}) for g in GUIDANCE
    ]


# Published tables


def read_published(path: Path) -> list[dict[str, str]]:
    """The rows of a published table, as they are printed, by the names of our metrics; "" where it has nothing."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def published_table(
    path: Path, headings: Mapping[str, str], ours: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Lines of a table: the published rows, then ours by name, whose cells lie under the same metrics."""
    published = read_published(path)
    columns = list(published[0])[1:]
    rows: list[list[Cell]] = [[row["model"], *(row[c] for c in columns)] for row in published]
    for name, cells in ours.items():
        rows.append([f"**{name}** (ours)", *(cells.get(column) for column in columns)])
    return table(("", *(headings.get(column, column) for column in columns)), rows)
