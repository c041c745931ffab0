"""Trains the two included sprites tokenizers with `arvid fit` and one recipe, and writes them to arvid/assets.

    arvid bench demo/train_tokenizers

The record beside each file describes its training and its PSNR on unseen sprites. Takes about half an hour on two CPU
cores. The existing files come from an earlier training loop with nearly the same recipe, as their records say.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from arvid import __version__
from arvid.contracts import VideoTokenizer
from arvid.data.collate import collate
from arvid.data.datamodule import VideoExamples
from arvid.data.sprites import Sprites
from arvid.experiments.side_by_side import Job, run_side_by_side
from arvid.files import write_json
from arvid.hardware import hardware
from arvid.training.export import load_tokenizer, save_tokenizer
from arvid.training.keys import LAST_CHECKPOINT
from arvid.training.tokenizer_module import psnr

ASSETS = Path(__file__).parents[2] / "arvid" / "assets"
NAMES = ("vae3d", "magvit_fsq")
NUM_UNSEEN = 512


def main() -> None:
    """Train, export, measure, record."""
    parser = argparse.ArgumentParser(
        prog="arvid bench demo/train_tokenizers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"), help="run folders")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the two files")
    options, extra = parser.parse_known_args()
    commands = {name: fit(name, options.runs / name, extra) for name in NAMES}
    run_side_by_side([Job(name, command) for name, command in commands.items()], options.runs)
    for name, command in commands.items():
        checkpoint = options.runs / name / LAST_CHECKPOINT
        record = describe(command, steps_of(checkpoint))
        export(load_tokenizer(checkpoint), options.out / f"sprites-{name}.safetensors", record)


def fit(name: str, run: Path, extra: list[str]) -> list[str]:
    """Arguments of `arvid fit`. The two tokenizers differ only in the bottleneck."""
    configs = ["--config", f"tokenizers/sprites-{name}", "--config", "settings/sprites-tokenizers"]
    return ["fit", *configs, "--run", str(run), *extra]


def steps_of(checkpoint: Path) -> int:
    """Number of optimiser steps of a checkpoint."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


def describe(command: list[str], steps: int) -> dict[str, Any]:
    """Record of a tokenizer's training."""
    return {
        "command": shlex.join(["arvid", *command]),
        "steps": steps,
        "unseen": f"Sprites({NUM_UNSEEN}, seed=1), mean over clips",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
    }


def export(tokenizer: VideoTokenizer, path: Path, record: dict[str, Any]) -> None:
    """Write file and record. The PSNR is measured with the fp16 weights."""
    # saved twice: first to load the fp16 weights, then with their PSNR in the record
    save_tokenizer(tokenizer, path, record, half=True)
    record["psnr_unseen"] = measure(load_tokenizer(path))
    save_tokenizer(tokenizer, path, record, half=True)
    write_json(path.with_suffix(".json"), record)
    print(f"{path}: {record['psnr_unseen']} dB, {path.stat().st_size} bytes")


@torch.no_grad()
def measure(tokenizer: VideoTokenizer) -> float:
    """PSNR in dB of `decode(encode(video))`, mean over unseen sprites."""
    clips = DataLoader(VideoExamples(Sprites(NUM_UNSEEN, seed=1)), 16, collate_fn=collate)
    scores = [
        psnr(tokenizer.decode(tokenizer.encode(batch["video"])), batch["video"]) for batch in clips
    ]
    return round(float(torch.cat(scores).mean()), 3)


if __name__ == "__main__":
    main()
