"""Shared code of the benchmarks of NBP's tables and figures: scales, blocks, sizes, protocols, command line.

scales:
  demo    a CPU: sprites, or your own clips (--data) with your own tokenizer (--tokenizer). Metrics without weights are
          left out, and the page lists them
  lab     one GPU: the paper's data and tokenizer, smaller networks, 20,000 steps, 1,000 clips
  paper   as published
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arvid.contracts import UserError, VideoDataset
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.records import ResultRecord
from arvid.experiments.paper import script_parser
from arvid.experiments.variants import (
    Speed,
    Variant,
    data_options,
    folders,
    measure_speed,
    named_paths,
    score,
    tokenizer_option,
    train,
    usable,
)
from arvid.paradigms.next_block.layout import Block
from arvid.ranges import at_least
from arvid.report.comparison import Comparison
from arvid.report.page import write_report
from arvid.training.export import load_tokenizer

Data = Literal["k600", "ucf101"]
Task = Literal["frames", "class and frame", "class"]
"""Tasks by their conditions: five frames (Kinetics-600); class and first frame, or only the class (both UCF-101)."""

PROTOCOLS: dict[Task, str] = {
    "frames": "nbp-k600-fp",
    "class and frame": "nbp-ucf101-cfp",
    "class": "nbp-ucf101-cg",
}
RECIPES: dict[Task, tuple[Data, str]] = {
    "frames": ("k600", "nbp-paper-k600"),
    "class and frame": ("ucf101", "nbp-paper-ucf101"),
    "class": ("ucf101", "nbp-released-ucf101"),
}
"""Data of each task, and the configurations (settings and paradigms) of its models, as in table 6 of the paper. The
task with only the class is not in table 6; only the released code trains for it."""
METRICS = {"fvd": "FVD ↓", "psnr-pooled": "PSNR ↑", "ssim": "SSIM ↑", "lpips-nbp": "LPIPS ↓"}
"""The paper's metrics, by their names in the registry."""

LAB_CLIPS = 1_000
DEMO_CLIPS = 128
DEMO_SIDES = {"sprites": 32, "clips": 64}
"""Height and width of the demo's clips, pixels."""
SIZES = {
    "demo": {"d4w64": "d4w64", "d5w96": "d5w96", "d6w128": "tiny"},
    "lab": {"d8w384": "d8w384", "d12w512": "d12w512", "d12w768": "d12w768"},
    "paper": {"700M": "d24w1536", "1.2B": "d24w2048", "3B": "d32w3072"},
}
"""Scale -> size name -> configuration. The scale paper has the sizes of the paper's table 4."""
ABLATED = {"demo": "d6w128", "lab": "d12w768", "paper": "700M"}
"""The size at which blocks are compared."""
PARADIGM = "--model.init_args.paradigm.init_args"
DEMO_OPTIONS = (
    "--trainer.max_steps=600",
    "--trainer.val_check_interval=150",
)
LAB_OPTIONS = (
    "--trainer.max_steps=20000",
    "--trainer.precision=bf16-mixed",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.val_check_interval=1000",
    "--data.batch_size=64",
    "--model.init_args.optimizer.warmup_steps=1000",
)


# The command line


def parser(description: str, out: str, data: Sequence[Data] = ("k600",)) -> argparse.ArgumentParser:
    """A parser with the common options, and the options of the named real sets."""
    made = script_parser(
        f"{description}\n{(__doc__ or '').split(chr(10), 2)[2]}",
        out,
        SIZES,
        epilog="Other options (--trainer.max_steps=500, --data.batch_size=8) go to `arvid fit` of all variants. "
        "Repeat the same command to continue an interrupted benchmark.",
    )
    made.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME",
        help="protocol for the task with the same given frames, by name or file; may be repeated (default: "
        f"{', '.join(PROTOCOLS.values())}; the paper's text: nbp-k600-fp-paper, nbp-ucf101-cfp-paper)",
    )
    made.add_argument(
        "--num-clips", type=at_least(2).integer, help="clips of each protocol (default: by scale)"
    )
    demo = made.add_argument_group("scale demo")
    demo.add_argument("--data", type=Path, help="folder of class folders, or manifest (sprites)")
    _add_models(demo, "")
    if "k600" in data:
        k600 = made.add_argument_group("scales lab and paper, Kinetics-600")
        k600.add_argument("--k600-train", type=Path, help="folder of videos, or manifest")
        k600.add_argument("--k600-val", type=Path, help="folder of videos, or manifest")
        _add_models(k600, "k600-")
    if "ucf101" in data:
        ucf101 = made.add_argument_group("scales lab and paper, UCF-101")
        ucf101.add_argument("--ucf101", type=Path, help="folder of class folders")
        ucf101.add_argument("--ucf101-lists", type=Path, help="of trainlist01.txt, testlist01.txt")
        ucf101.add_argument("--llama-tokenizer", type=Path, help="LLaMA's tokenizer.json")
        _add_models(ucf101, "ucf101-")
    return made


def _add_models(group: argparse._ArgumentGroup, prefix: str) -> None:
    group.add_argument(f"--{prefix}tokenizer", help="discrete tokenizer: file, checkpoint or name")
    group.add_argument(
        f"--{prefix}checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="score this model instead of training models; may be repeated",
    )


def read_arguments(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line. Unknown options go to `fit_options`, for `arvid fit`.

    Raises UserError for options of another scale, which would have no effect.
    """
    options, unknown = made.parse_known_args()
    options.fit_options = unknown
    sets = ("k600_", "ucf101", "llama_")
    demo = options.scale == "demo"
    for name, value in vars(options).items():
        of_sets, of_demo = name.startswith(sets), name in ("data", "tokenizer", "checkpoint")
        if value and (of_sets if demo else of_demo):
            raise UserError(
                f"--{name.replace('_', '-')} is no option of the scale {options.scale}: that one takes "
                f"{'--data, --tokenizer and --checkpoint' if demo else 'those of the published sets (--help)'}."
            )
    return options


def _required(options: argparse.Namespace, name: str) -> Path:
    value: Path | None = getattr(options, name)
    if value is None:
        raise UserError(f"The scale {options.scale} needs --{name.replace('_', '-')} here.")
    return value


def _of_data(options: argparse.Namespace, data: Data, name: str) -> str:
    """Name of the option of a set of clips."""
    return name if options.scale == "demo" else f"{data}_{name}"


# What is trained


def variant(
    name: str, options: argparse.Namespace, task: Task, *, size: str, block: Block
) -> Variant:
    """A variant for a task, with a size of SIZES."""
    demo = options.scale == "demo"
    setting, paradigm = (demo_setting(options), "next_block") if demo else (RECIPES[task][1],) * 2
    sized = SIZES[options.scale][size]
    return Variant(
        name=name,
        configs=(f"settings/{setting}", f"paradigms/{paradigm}", f"sizes/{sized}"),
        options=(f"{PARADIGM}.block={list(block)}".replace(" ", ""),),
    )


def demo_setting(options: argparse.Namespace) -> str:
    """Prefix of the name of the demo's setting."""
    return "clips" if options.data else "sprites"


def given(options: argparse.Namespace, task: Task) -> list[Variant]:
    """The models that the command line names for a task. They are scored instead of trained ones."""
    named = getattr(options, _of_data(options, RECIPES[task][0], "checkpoint"))
    return [Variant(name=n, checkpoint=p) for n, p in named_paths(named).items()]


def fit_options(options: argparse.Namespace, task: Task, *, paper: Sequence[str] = ()) -> list[str]:
    """Common options of `arvid fit` for all variants of a task. The user's options come last and win.

    `paper` are further options at the scale paper. Raises UserError if required data or a tokenizer is missing.
    """
    by_scale = {"demo": DEMO_OPTIONS, "lab": LAB_OPTIONS, "paper": paper}[options.scale]
    return [
        *_data_options(options, task),
        *_tokenizer_options(options, task),
        *by_scale,
        *options.fit_options,
    ]


def _data_options(options: argparse.Namespace, task: Task) -> list[str]:
    if options.scale == "demo":
        frames = [f"--data.{part}.init_args.num_frames=17" for part in ("train", "val")]
        return data_options(options.data) if options.data else frames
    if RECIPES[task][0] == "k600":
        return data_options(_required(options, "k600_train"), _required(options, "k600_val"))
    root, lists = _required(options, "ucf101"), _required(options, "ucf101_lists")
    found = [f"--model.init_args.text.init_args.tokenizer={_required(options, 'llama_tokenizer')}"]
    for part, file in (("train", "trainlist01.txt"), ("val", "testlist01.txt")):
        place = f"--data.{part}.init_args"
        found += [f"{place}.root={root}", f"{place}.split_list={lists / file}"]
    return found


def _tokenizer_options(options: argparse.Namespace, task: Task) -> list[str]:
    name = _of_data(options, RECIPES[task][0], "tokenizer")
    tokenizer = getattr(options, name)
    if tokenizer is None and options.scale == "demo" and options.data:
        raise UserError(
            "Your own clips need a tokenizer of their own: --tokenizer CHECKPOINT. Train one with "
            "`arvid fit --config tokenizers/clips-magvit_fsq --config settings/clips-tokenizers`."
        )
    if tokenizer is None and options.scale == "demo":
        return []
    if tokenizer is None:
        raise UserError(f"The scale {options.scale} needs --{name.replace('_', '-')} here.")
    return [
        tokenizer_option(discrete=str(tokenizer)),
    ]


def trained(
    options: argparse.Namespace,
    task: Task,
    variants: Callable[[], Sequence[Variant]],
    *,
    out: Path | None = None,
    paper: Sequence[str] = (),
) -> Sequence[Variant]:
    """The models that the command line names for a task, or else `variants`, which are trained in OUT (--out).

    `paper` is as for `fit_options`.
    """
    rows: Sequence[Variant] = given(options, task)
    if not rows:
        rows = variants()
        train(rows, out or options.out, fit_options(options, task, paper=paper))
    return rows


# Blocks


def frame_sides(options: argparse.Namespace) -> tuple[int, int]:
    """Rows and columns of a frame's tokens: 16 x 16, except in the demo."""
    if options.scale != "demo":
        return 16, 16
    tokenizer = load_tokenizer(options.tokenizer or "sprites-magvit_fsq")
    side = DEMO_SIDES[demo_setting(options)]
    grid = tokenizer.spec.grid(1, side, side)
    return grid.h, grid.w


def num_latents(options: argparse.Namespace) -> int:
    """Latent frames of a clip: 5, except in a demo whose tokenizer has another temporal stride."""
    if options.scale != "demo":
        return 5
    tokenizer = load_tokenizer(options.tokenizer or "sprites-magvit_fsq")
    return tokenizer.spec.grid(17, *tokenizer.spec.strides[1:]).t


def published_blocks(height: int, width: int) -> list[Block]:
    """Block shapes of the paper's ablation for a frame of this size: a token, a row, a quarter of the rows, a frame.

    For 16 x 16 they are 1x1x1, 1x1x16, 1x4x16 and 1x16x16.
    """
    return [(1, 1, 1), (1, 1, width), (1, max(height // 4, 1), width), (1, height, width)]


def block_name(block: Block) -> str:
    """Text of a block: `1x4x16`."""
    return "x".join(map(str, block))


def parse_block(text: str) -> Block:
    """Parse `1x4x16` into sides. Raises ArgumentTypeError for another form."""
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"a block is TxHxW, as in 1x4x16, not {text!r}")
    t, h, w = map(int, sides)
    return t, h, w


# How it is scored


@dataclass(frozen=True)
class Scoring:
    """Protocols, real clips by protocol name, and notes on metrics that were left out."""

    protocols: tuple[Protocol, ...]
    real: dict[str, VideoDataset]
    notes: tuple[str, ...]


def scoring(
    options: argparse.Namespace, tasks: Sequence[Task], *, also: Sequence[str] = ()
) -> Scoring:
    """The paper's protocols for some tasks; in the demo similar ones on the run's validation clips.

    `also` are additional metrics. They give the protocols another name.
    """
    found: list[Protocol] = []
    notes: dict[str, None] = {}
    real: dict[str, VideoDataset] = {}
    for task in tasks:
        protocol, left_out = _protocol(options, task)
        if also:
            name = "-".join((protocol.name, "and", *also))
            metrics = (*protocol.metrics, *also)
            protocol = dataclasses.replace(protocol, name=name, metrics=metrics)
        found.append(protocol)
        notes.update(dict.fromkeys(left_out))
        if options.scale != "demo":
            real[protocol.name] = _real(options, protocol, task)
    return Scoring(tuple(found), real, tuple(notes))


@dataclass(frozen=True)
class Scored:
    """What came of models: how they were scored, their records and the report's comparison."""

    scoring: Scoring
    records: list[ResultRecord]
    comparison: Comparison

    def of(self, protocol: Protocol) -> list[ResultRecord]:
        """The records under one protocol."""
        return [record for record in self.records if record.protocol_name == protocol.name]


def scored(
    rows: Sequence[Variant],
    options: argparse.Namespace,
    tasks: Sequence[Task],
    *,
    title: str,
    out: Path | None = None,
    also: Sequence[str] = (),
) -> Scored:
    """Score the models of `trained` under the protocols of `scoring`, and write OUT/index.html."""
    out = out or options.out
    one_setting = not given(options, tasks[0])
    found = scoring(options, tasks, also=also)
    records = score(
        rows,
        found.protocols,
        out,
        real=found.real,
        references=rows if one_setting else rows[:1],
    )
    comparison = write_report(
        folders(records), out, title=title, allow_different_settings=not one_setting
    )
    return Scored(found, records, comparison)


def speeds(rows: Sequence[Variant], found: Scoring, out: Path) -> dict[str, Speed]:
    """What one clip takes under the first protocol, by the models' names."""
    protocol = found.protocols[0]
    return {row.name: measure_speed(row, protocol, out, real=found.real) for row in rows}


def _protocol(options: argparse.Namespace, task: Task) -> tuple[Protocol, list[str]]:
    protocol = chosen_protocol(options, task)
    if options.scale == "demo":
        return usable(_demo_protocol(options, protocol))
    count = options.num_clips or (LAB_CLIPS if options.scale == "lab" else None)
    if count:
        name = f"{protocol.name}-{count}"
        protocol = dataclasses.replace(protocol, name=name, num_clips=count, folds=1)
    return (protocol, []) if options.scale == "paper" else usable(protocol)


def chosen_protocol(options: argparse.Namespace, task: Task) -> Protocol:
    """The protocol of a task: the one of --protocol with the task's given frames, or else that of PROTOCOLS.

    Raises UserError if several fit, or if one fits no task.
    """
    usual = {other: get_protocol(name) for other, name in PROTOCOLS.items()}
    given = {name: get_protocol(name) for name in options.protocol}
    kinds = {(p.task, p.condition_frames) for p in usual.values()}
    for name, protocol in given.items():
        if (protocol.task, protocol.condition_frames) not in kinds:
            raise UserError(
                f"--protocol {name}: NBP's tasks give no frames, one or five, not {protocol.condition_frames}."
            )
    own = usual[task]
    fitting = [
        p
        for p in given.values()
        if (p.task, p.condition_frames) == (own.task, own.condition_frames)
    ]
    if len(fitting) > 1:
        raise UserError(f"--protocol names {len(fitting)} protocols for {task}: give one.")
    return fitting[0] if fitting else own


def _demo_protocol(options: argparse.Namespace, protocol: Protocol) -> Protocol:
    """The same given and scored frames, on the run's validation clips, with a distance that needs no download."""
    frames = {0: "", 1: " and first frame"}
    others = f" and {protocol.condition_frames} frames"
    return dataclasses.replace(
        protocol,
        name=protocol.name.replace("nbp-", "nbp-demo-"),
        summary=f"Caption{frames.get(protocol.condition_frames, others)} given.",
        metrics=("fd-efficientnet" if options.data else "fd-sprites", *protocol.metrics),
        num_clips=options.num_clips or DEMO_CLIPS,
        folds=1,
        real_split="the validation set of the run's setting",
        too_few="half",
        clip=None,
        paired_size=None,
        preprocessing="nbp",
    )


def _real(options: argparse.Namespace, protocol: Protocol, task: Task) -> VideoDataset:
    if RECIPES[task][0] == "k600":
        return real_clips(protocol, _required(options, "k600_val"))
    lists = _required(options, "ucf101_lists")
    return real_clips(protocol, _required(options, "ucf101"), lists / "trainlist01.txt")
