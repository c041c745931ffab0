"""Reconstruct videos with a tokenizer: write original and reconstruction side by side, and print the metrics.

Any video will do. If the tokenizer does not take its size or number of frames, the last column, row and frame are
repeated, and the padding is cut off from the reconstruction. Long videos are streamed, in memory that does not depend
on their length, if the tokenizer supports it.

examples:
  arvid reconstruct video.mp4 --tokenizer sprites-magvit_fsq
  arvid reconstruct videos/*.mp4 --tokenizer runs/fsq/checkpoints/last.ckpt --size 128 --out reconstructions
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arvid.commands._flags import add_trust_argument
from arvid.errors import UserError
from arvid.processes import best_device
from arvid.ranges import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument(
        "--tokenizer", required=True, help="embedded name, tokenizer file or training checkpoint"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reconstructions"),
        help="folder, or for a single video an .mp4 file (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=at_least(1).integer,
        help="resize the shorter side to this many pixels (default: no resizing)",
    )
    parser.add_argument(
        "--frames", type=at_least(1).integer, help="use only this many first frames (default: all)"
    )
    add_trust_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code. A video that fails is reported, and the others are still done."""
    from arvid.sampling.reconstruction import available_metrics, plan, reconstruct
    from arvid.training.export import load_tokenizer

    targets = _targets(options)
    tokenizer = load_tokenizer(options.tokenizer).to(best_device())
    metrics = available_metrics()
    failed = []
    for path, target in targets.items():
        try:
            work = plan(path, tokenizer.spec, size=options.size, max_frames=options.frames)
            print(f"{path}: {work.describe(tokenizer.spec)}")
            scores = reconstruct(path, tokenizer, work, target, metrics)
        except UserError as error:
            print(error if str(path) in str(error) else f"{path}: {error}", file=sys.stderr)
            failed.append(path)
            continue
        print(f"  {', '.join(f'{name} {score}' for name, score in scores.items())} -> {target}")
    if failed:
        raise UserError(f"{len(failed)} of {len(targets)} videos could not be reconstructed.")
    return 0


def _targets(options: argparse.Namespace) -> dict[Path, Path]:
    """Output path of each video. Raises UserError if two videos have the same one, or if it is the video itself."""
    if options.out.suffix.lower() == ".mp4":
        if len(options.videos) > 1:
            raise UserError(f"--out {options.out} is one file: several videos need a folder.")
        targets = {options.videos[0]: options.out}
    else:
        targets = {path: options.out / f"{path.stem}.mp4" for path in options.videos}
    if len(set(targets.values())) < len(targets):
        raise UserError(
            "Some of the videos have the same name: reconstruct them one after another."
        )
    for path, target in targets.items():
        if path.resolve() == target.resolve():
            raise UserError(f"{target} is the video itself: give another --out.")
    return targets
