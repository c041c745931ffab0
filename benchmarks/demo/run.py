"""The demo: two orders of prediction with both token types, trained under one setting, scored and shown side by side.

NOVA (frame by frame, in sets of tokens) and next-block prediction (four tokens of a row at a time), each on continuous
and on discrete tokens, and reference rows for comparison. The default data are the included sprites with their included
tokenizers. With --actions: keyboard sprites, which move as an action for each frame says. With --data: your own clips;
the two tokenizers are then trained first. `arvid bench matrix` compares more orders, with several seeds. `arvid bench
demo` is the same command.

scales:
  demo    one million parameters, 1,400 steps, 8,192 clips: about ten minutes on two CPU cores
  quick   a quarter of a million parameters, 500 steps, 2,048 clips: about three minutes. All rows learn the requested
          colour, none the outlines.
  smoke   three steps, to check that it runs

examples:
  arvid demo
  arvid demo --scale quick
  arvid demo --actions --out runs/keyboard-sprites
  arvid demo --data videos/ --out runs/mine

Repeat the same command to continue an interrupted demo.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arvid.ranges import at_least

if TYPE_CHECKING:  # imported where they are used, so that --help answers at once
    from arvid.benchmarks.matrix._rows import MatrixRow
    from arvid.evaluation.records import ResultRecord
    from arvid.experiments.side_by_side import Job

ORDERS = ("next_block-1x1x4", "nova")
"""Blocks of a whole row, the matrix's `next_block`, train as fast but draw worse outlines on continuous tokens.

The order that takes longer comes first: two cores then end nearly together.
"""
TASKS = ("generation", "prediction")
TOKENIZERS = {"vae3d": "continuous", "magvit_fsq": "discrete"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the models, training and evaluation."""

    size: str
    """Size of the paradigms: a file of configs/sizes."""
    options: tuple[str, ...] = ()
    """Options of `arvid fit`, for tokenizers and generators."""
    sprites: tuple[str, ...] = ()
    """Further options of `arvid fit` without --data."""
    num_clips: int | None = None
    """Number of clips per protocol; None: as in the protocols."""


SCALES = {
    "smoke": Scale(
        size="debug",
        options=(
            "--trainer.max_steps=3",
            "--trainer.val_check_interval=3",
            "--data.clips_per_step=4",
        ),
        sprites=("--data.train.init_args.num_clips=16", "--data.val.init_args.num_clips=16"),
        num_clips=4,
    ),
    "quick": Scale(
        size="d4w64",
        options=("--trainer.max_steps=500", "--trainer.val_check_interval=250"),
        sprites=("--data.train.init_args.num_clips=2048",),
        num_clips=64,
    ),
    "demo": Scale(size="d5w96"),
}


def main() -> None:
    """Train, evaluate, compare."""
    options = parse_arguments()
    from arvid.benchmarks.matrix._rows import TOKEN_TYPES, all_rows
    from arvid.evaluation.protocols import get_protocol
    from arvid.experiments.side_by_side import run_side_by_side
    from arvid.experiments.variants import (
        FEW_CLIPS,
        condition_options,
        data_options,
        folders,
        score,
        train,
    )
    from arvid.report import tables
    from arvid.report.page import write_report
    from arvid.terminal import wrapped

    scale = SCALES[options.scale]
    started = time.monotonic()
    data = [*(data_options(options.data) if options.data else []), *scale.options]
    if options.data:
        if options.scale == "smoke":
            data += FEW_CLIPS
        conditions = condition_options(options.data)
        print("Training the tokenizers ...", flush=True)
        run_side_by_side([tokenizer_job(options, name, data) for name in TOKENIZERS], options.out)
        data += [*tokenizer_options(options), *conditions]
    else:
        data += scale.sprites
    rows = [
        dataclasses.replace(row, names_seed=False)
        for row in all_rows(ORDERS, TOKEN_TYPES, [scale.size], 1, setting(options))
    ]
    variants = [row.variant([*data, *options.fit_options]) for row in rows]
    print(wrapped(f"Training {', '.join(row.cell for row in rows)} ..."), flush=True)
    train(variants, options.out)
    trained = time.monotonic()
    protocols = [
        get_protocol(f"{setting(options)}-{task}", num_clips=scale.num_clips) for task in TASKS
    ]
    records = score(variants, protocols, options.out)
    comparison = write_report(folders(records), options.out, title=options.title)
    tables.show(comparison)
    print(f"\n{wrapped(effects(rows, records, scale.size))}")
    print(
        f"\nTrained in {trained - started:.0f} s, scored in {time.monotonic() - trained:.0f} s. "
        f"Open {options.out / 'index.html'} to see the videos."
    )


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown options go to `fit_options`, for `arvid fit`."""
    parser = argparse.ArgumentParser(
        prog="arvid demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options (--trainer.max_steps=500, --data.clips_per_step=8) go to `arvid fit` of all rows.",
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="demo")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--data",
        type=Path,
        help="your own clips: a folder of videos, with or without class folders, or a manifest (.csv, .jsonl, ...)",
    )
    which.add_argument("--actions", action="store_true", help="keyboard sprites")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs")
    parser.add_argument("--title", default="Two orders of prediction, two token types")
    parser.add_argument(
        "--tokenizer-steps",
        type=at_least(1).integer,
        default=3000,
        help="with --data: training steps of the tokenizers",
    )
    options, unknown = parser.parse_known_args()
    options.fit_options = unknown
    return options


def tokenizer_job(options: argparse.Namespace, name: str, data: list[str]) -> Job:
    """Train a tokenizer on the user's clips."""
    from arvid.experiments.variants import fit_job

    steps = options.tokenizer_steps if options.scale != "smoke" else 3
    configs = [f"tokenizers/clips-{name}", "settings/clips-tokenizers"]
    given = [*data, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    return fit_job(name, configs, tokenizer_run(options, name), given)


def tokenizer_options(options: argparse.Namespace) -> list[str]:
    """The options of `arvid fit` that name the trained tokenizers."""
    from arvid.training.keys import LAST_CHECKPOINT

    return [
        f"--model.init_args.tokenizers.{kind}={tokenizer_run(options, name) / LAST_CHECKPOINT}"
        for name, kind in TOKENIZERS.items()
    ]


def tokenizer_run(options: argparse.Namespace, name: str) -> Path:
    """Run folder of a tokenizer."""
    return Path(options.out / "tokenizers" / name)


def effects(rows: Sequence[MatrixRow], records: Sequence[ResultRecord], size: str) -> str:
    """What the first metric says about order and token type."""
    from arvid.benchmarks.matrix._values import metrics_of
    from arvid.experiments.effects import sentences

    first = metrics_of(rows, records, size)[0]
    assert first.effects is not None, "there are two orders and two token types"
    found = sentences(
        first.effects,
        metric=first.label,
        higher_is_better=first.higher_is_better,
        unit=first.unit,
    )
    return " ".join(found[:2])


def setting(options: argparse.Namespace) -> str:
    """Prefix of the names of the setting and its protocols."""
    if options.data:
        return "clips"
    return "keyboard-sprites" if options.actions else "sprites"


if __name__ == "__main__":
    main()
