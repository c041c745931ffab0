"""Trains the two embedded sprites tokenizers by `arvid fit`, with one recipe, and writes them to arvid/assets.

    python benchmarks/demo/train_tokenizers.py

Beside each safetensors file (fp16, under 1 MB) lies a record of how it came about: command, steps, seed, PSNR on
sprites that the training never saw, date, hardware, seconds. Options it does not know go to `arvid fit`.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader

from arvid import __version__
from arvid.cli import main as arvid
from arvid.contracts import UserError, VideoTokenizer
from arvid.data.collate import collate
from arvid.data.datamodule import VideoExamples
from arvid.data.sprites import Sprites
from arvid.evaluation.records import hardware
from arvid.files import write_json
from arvid.training.cli import find_config
from arvid.training.export import load_tokenizer, save_tokenizer
from arvid.training.tokenizer_module import psnr

ASSETS = Path(__file__).parents[2] / "arvid" / "assets"
NAMES = ("vae3d", "magvit_fsq")
SETTING = "settings/sprites-tokenizers"
NUM_UNSEEN = 512


def main() -> None:
    """Train, export, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=NAMES, help="train this one alone")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the two files")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"))
    options, fit_options = parser.parse_known_args()
    for name in NAMES if options.only is None else (options.only,):
        started = time.monotonic()
        run = options.runs / name
        train(name, run, fit_options)
        record = describe(run, time.monotonic() - started)
        path = options.out / f"sprites-{name}.safetensors"
        save_tokenizer(load_tokenizer(run / "checkpoints/last.ckpt"), path, record, half=True)
        record["psnr_unseen"] = measure(load_tokenizer(path))  # of the fp16 weights
        save_tokenizer(load_tokenizer(path), path, record, half=True)
        write_json(path.with_suffix(".json"), record)
        print(f"{path}: {record['psnr_unseen']} dB, {path.stat().st_size} bytes")


def train(name: str, run: Path, fit_options: list[str]) -> None:
    """`arvid fit` with the recipe of configs/."""
    configs = [f"--config=tokenizers/sprites-{name}", f"--config={SETTING}"]
    if arvid(["fit", *configs, f"--run={run}", *fit_options]):
        raise UserError(f"Training {name} failed; see above.")


def describe(run: Path, seconds: float) -> dict[str, Any]:
    """How the tokenizer came about."""
    setting = yaml.safe_load(find_config(SETTING).read_text())
    checkpoint = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "steps": checkpoint["global_step"],
        "seed": setting["seed_everything"],
        "unseen": f"Sprites({NUM_UNSEEN}, seed=1), mean over clips",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{hardware()}, {torch.get_num_threads()} threads",
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def measure(tokenizer: VideoTokenizer) -> float:
    """PSNR in dB of `decode(encode(video))`, mean over sprites that no training saw."""
    clips = DataLoader(VideoExamples(Sprites(NUM_UNSEEN, seed=1)), 16, collate_fn=collate)
    scores = [
        psnr(tokenizer.decode(tokenizer.encode(batch["video"])), batch["video"]) for batch in clips
    ]
    return round(float(torch.cat(scores).mean()), 3)


if __name__ == "__main__":
    main()
