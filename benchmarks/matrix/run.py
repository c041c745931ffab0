"""The comparison that arvid exists for: orders of prediction x token types, under one setting.

Every order is trained on continuous and on discrete tokens, with several seeds. All rows have the same data, tokenizer
of their token type, optimiser and number of tokens per clip. The result says how much of the quality is due to the
order, to the token type, to their interaction, and to the seed.

scales:
  smoke   three steps, to check that it runs
  demo    one million parameters, 1,400 steps on the included sprites: about 80 minutes on two CPU cores for three seeds
          of the core rows
  lab     38 million parameters, 20,000 steps on your own clips (--data): days on one GPU
  paper   the size of NOVA's 0.6B network on your own clips: a cluster

examples:
  arvid bench matrix
  arvid bench matrix --scale smoke
  arvid bench matrix --orders nova next_block --seeds 5
  arvid bench matrix --equal flops
  arvid bench matrix --sizes d4w64 d5w96 tiny --seeds 1
  arvid bench matrix --data videos/ --continuous vae3d.ckpt --discrete fsq.ckpt
  arvid bench matrix --share 3/8        on each of eight machines with a shared --out, then once without --share

Writes index.html (all clips side by side), table.md, results.json and figures (PNG and SVG) to --out. Repeat the same
command to continue an interrupted benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arvid.benchmarks.matrix._rows import CORE, ORDERS, SIZES, TOKEN_TYPES, MatrixRow, all_rows
from arvid.ranges import at_least

if TYPE_CHECKING:  # imported where they are used, so that --help answers at once
    from arvid.evaluation.protocols import Protocol
    from arvid.experiments.variants import Variant

TASKS = ("generation", "prediction")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the models, training and evaluation."""

    size: str
    options: tuple[str, ...] = ()
    """Options of `arvid fit` for all rows."""
    seeds: int = 3
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
        seeds=1,
        num_clips=4,
    ),
    "demo": Scale(size="d5w96"),
    "lab": Scale(
        size="d12w512",
        options=("--trainer.max_steps=20000", "--trainer.val_check_interval=2000"),
    ),
    "paper": Scale(
        size="d48w1024",
        options=("--trainer.max_steps=200000", "--trainer.val_check_interval=10000"),
    ),
}


def main() -> None:
    """Train, score, analyse, write."""
    options = parse_arguments()
    from arvid.benchmarks.matrix import _budgets, _longer, _results
    from arvid.experiments.variants import score, train

    rows = _budgets.with_equal(
        options.equal, matrix_rows(options), options.fit_options, options.out
    )
    mine = rows[options.share[0] - 1 :: options.share[1]]
    print(f"Training {len(mine)} of {len(rows)} rows ...", flush=True)
    train(variants(mine, options), options.out)
    protocols, notes = scored_protocols(options)
    if len(mine) < len(rows):
        score(variants(mine, options), protocols, options.out, references=())
        _longer.score_longer(mine, options)
        print("This share is done. After all shares, repeat the command without --share.")
        return
    first = [next(row for row in rows if row.token_type == kind) for kind in options.token_types]
    references = variants(first, options)
    records = score(variants(rows, options), protocols, options.out, references=references)
    longer = _longer.score_longer(rows, options)
    _results.write(rows, records, longer, options, notes)


def variants(rows: Sequence[MatrixRow], options: argparse.Namespace) -> list[Variant]:
    """The rows as trainings."""
    return [row.variant(options.fit_options) for row in rows]


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown options go to `fit_options`, for `arvid fit`.

    Raises UserError for options that contradict each other.
    """
    parser = argparse.ArgumentParser(
        prog="arvid bench matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options (--trainer.max_steps=500, --data.clips_per_step=8) go to `arvid fit` of all rows.",
    )
    parser.add_argument("--scale", choices=SCALES, default="demo")
    parser.add_argument(
        "--orders", nargs="+", choices=ORDERS, default=list(CORE), help=f"default: {' '.join(CORE)}"
    )
    parser.add_argument(
        "--token-types", nargs="+", choices=TOKEN_TYPES, default=list(TOKEN_TYPES), help="both"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, help="of configs/sizes; with three or more, scaling"
    )
    parser.add_argument("--seeds", type=at_least(1).integer, help="trainings of each row")
    parser.add_argument(
        "--equal",
        choices=("steps", "flops", "parameters"),
        default="steps",
        help="equal for all rows: steps and size (default), training FLOPs, or parameters",
    )
    parser.add_argument("--data", type=Path, help="folder of class folders, or manifest")
    parser.add_argument("--val", type=Path, help="validation clips (default: a part of --data)")
    parser.add_argument("--continuous", help="with --data: continuous tokenizer")
    parser.add_argument("--discrete", help="with --data: discrete tokenizer")
    parser.add_argument(
        "--share",
        type=parse_share,
        default=(1, 1),
        metavar="I/N",
        help="train and score only the Ith of N parts",
    )
    parser.add_argument("--num-clips", type=at_least(2).integer, help="clips per protocol")
    parser.add_argument(
        "--times",
        type=at_least(1).integer,
        default=3,
        help="also score clips of this many trained lengths (default: 3; 1: do not)",
    )
    parser.add_argument("--title", default="Orders of prediction and token types")
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"), help="folder of the runs")
    options, unknown = parser.parse_known_args()
    return _completed(options, unknown)


def _completed(options: argparse.Namespace, unknown: list[str]) -> argparse.Namespace:
    from arvid.errors import UserError
    from arvid.experiments.variants import (
        FEW_CLIPS,
        condition_options,
        data_options,
        tokenizer_option,
    )

    scale = SCALES[options.scale]
    if options.scale in ("lab", "paper") and options.data is None:
        raise UserError(f"The scale {options.scale} needs your own clips: --data.")
    if options.data and not (options.continuous and options.discrete):
        raise UserError(
            "Your own clips need tokenizers of their own: --continuous CHECKPOINT --discrete CHECKPOINT. "
            "`arvid demo --data` trains both, in OUT/tokenizers."
        )
    options.seeds = options.seeds or scale.seeds
    options.sizes = options.sizes or [scale.size]
    options.num_clips = options.num_clips or scale.num_clips
    options.setting = "clips" if options.data else "sprites"
    data = data_options(options.data, options.val) if options.data else []
    if options.data:
        data.append(tokenizer_option(continuous=options.continuous, discrete=options.discrete))
        data += [*condition_options(options.data), *(FEW_CLIPS if options.scale == "smoke" else ())]
    options.fit_options = [*data, *scale.options, *unknown]
    return options


def parse_share(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8). Raises ArgumentTypeError for another form."""
    index, slash, number = text.partition("/")
    if not (slash and index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number)):
        raise argparse.ArgumentTypeError(
            f"give a part and the number of parts as 3/8, not {text!r}"
        )
    return int(index), int(number)


def matrix_rows(options: argparse.Namespace) -> list[MatrixRow]:
    """All rows that the command line asks for."""
    return all_rows(
        options.orders, options.token_types, options.sizes, options.seeds, options.setting
    )


def scored_protocols(options: argparse.Namespace) -> tuple[list[Protocol], list[str]]:
    """The protocols, with the metrics whose weights exist, and notes on the others."""
    from arvid.evaluation.protocols import get_protocol
    from arvid.experiments.variants import usable

    found = [
        usable(get_protocol(f"{options.setting}-{task}", num_clips=options.num_clips))
        for task in TASKS
    ]
    return [protocol for protocol, _ in found], [note for _, notes in found for note in notes]


if __name__ == "__main__":
    main()
