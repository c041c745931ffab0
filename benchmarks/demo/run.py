"""The demo: three paradigms trained under one setting, sampled, scored and shown side by side.

NOVA on continuous tokens, next-block and next-token prediction on discrete ones, with the reference rows that say
what the numbers mean. Without --data on the embedded sprites with their embedded tokenizers; with --data on a folder
of videos (a folder per class) or a manifest, for which the two tokenizers are trained first.

examples:
  arvid bench demo
  arvid bench demo --data videos/ --out runs/mine

An interrupted demo goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from arvid.contracts import UserError
from arvid.evaluation.protocols import get_protocol
from arvid.evaluation.rows import evaluate_references, evaluate_run
from arvid.report import tables
from arvid.report.page import write_report
from arvid.training.generator_module import LAST_CHECKPOINT
from arvid.training.side_by_side import Job, run_side_by_side

PARADIGMS = ("nova", "next_block", "next_token")
TOKENIZERS = {"vae3d": "continuous", "magvit_fsq": "discrete"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    size: str
    """Size of the paradigms: a file of configs/sizes."""
    options: tuple[str, ...] = ()
    """Options of `arvid fit`, for tokenizers and generators alike."""
    num_clips: int | None = None
    """Clips per protocol; None for what the protocols say."""


SCALES = {
    "smoke": Scale(
        size="debug",
        options=("--trainer.max_steps=3", "--trainer.val_check_interval=3", "--data.batch_size=4"),
        num_clips=4,
    ),
    "demo": Scale(size="tiny"),
}


def main() -> None:
    """Train, evaluate, compare."""
    options = parse_arguments()
    scale = SCALES[options.scale]
    started = time.monotonic()
    data = [*data_options(options), *scale.options]
    if options.data:
        print("Training the tokenizers ...", flush=True)
        run_side_by_side([tokenizer_job(options, name, data) for name in TOKENIZERS], options.out)
        data += tokenizer_options(options)
    print(f"Training {', '.join(PARADIGMS)} ...", flush=True)
    run_side_by_side([training_job(options, scale, name, data) for name in PARADIGMS], options.out)
    trained = time.monotonic()
    folders = score(options, scale)
    comparison = write_report(folders, options.out, title=options.title)
    print(tables.text(comparison))
    print(
        f"\nTrained in {trained - started:.0f} s, scored in {time.monotonic() - trained:.0f} s. "
        f"Open {options.out / 'index.html'} to see the videos."
    )


def parse_arguments() -> argparse.Namespace:
    """The command line; `fit_options` is what it does not know and `arvid fit` should."""
    parser = argparse.ArgumentParser(
        prog="arvid bench demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options (--trainer.max_steps=500, --data.batch_size=8) go to `arvid fit` of the three.",
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="demo")
    parser.add_argument("--data", type=Path, help="folder of class folders, or .jsonl/.csv file")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs")
    parser.add_argument("--title", default="Three ways to generate video autoregressively")
    parser.add_argument(
        "--tokenizer-steps", type=int, default=3000, help="with --data: their training steps"
    )
    options, unknown = parser.parse_known_args()
    options.fit_options = unknown
    if options.data is not None and not options.data.exists():
        raise UserError(f"{options.data}: there is no such folder or manifest.")
    return options


def data_options(options: argparse.Namespace) -> list[str]:
    """Options that put the user's clips into the setting; their splits are the setting's."""
    if options.data is None:
        return []
    kind = "folder.VideoFolder" if options.data.is_dir() else "manifest.VideoManifest"
    place = "root" if options.data.is_dir() else "path"
    given = []
    for part in ("train", "val"):
        given += [
            f"--data.{part}.class_path=arvid.data.{kind}",
            f"--data.{part}.init_args.{place}={options.data}",
        ]
    return given


def tokenizer_job(options: argparse.Namespace, name: str, data: list[str]) -> Job:
    """Train a tokenizer on the user's clips."""
    steps = options.tokenizer_steps if options.scale != "smoke" else 3
    configs = [f"tokenizers/clips-{name}", "settings/clips-tokenizers"]
    given = [*data, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    return Job(name, fit(configs, tokenizer_run(options, name), given))


def tokenizer_options(options: argparse.Namespace) -> list[str]:
    """The options of `arvid fit` that name the trained tokenizers."""
    return [
        f"--model.init_args.tokenizers.{kind}={tokenizer_run(options, name) / LAST_CHECKPOINT}"
        for name, kind in TOKENIZERS.items()
    ]


def tokenizer_run(options: argparse.Namespace, name: str) -> Path:
    """Run folder of a tokenizer."""
    return Path(options.out / "tokenizers" / name)


def training_job(options: argparse.Namespace, scale: Scale, name: str, data: list[str]) -> Job:
    """Train a paradigm."""
    configs = [f"settings/{setting(options)}", f"paradigms/{name}", f"sizes/{scale.size}"]
    return Job(name, fit(configs, options.out / name, [*data, *options.fit_options]))


def setting(options: argparse.Namespace) -> str:
    """What the names of the setting and of its protocols begin with."""
    return "clips" if options.data else "sprites"


def fit(configs: list[str], run: Path, extra: list[str]) -> list[str]:
    """Arguments of `arvid fit`."""
    named = [argument for config in configs for argument in ("--config", config)]
    return ["fit", *named, "--run", str(run), *extra]


def score(options: argparse.Namespace, scale: Scale) -> list[Path]:
    """Score all rows under the setting's two protocols, one at a time, so that speeds compare; their folders."""
    runs = [options.out / name for name in PARADIGMS]
    references = options.out / "references"
    for task in ("generation", "prediction"):
        protocol = get_protocol(f"{setting(options)}-{task}", num_clips=scale.num_clips)
        print(f"\nScoring under {protocol.name}: {protocol.summary}", flush=True)
        evaluate_references(runs, protocol, references)
        for run in runs:
            evaluate_run(run, protocol)
    return [*sorted(path for path in references.iterdir() if path.is_dir()), *runs]


if __name__ == "__main__":
    main()
