"""Trains the two embedded sprites tokenizers in a fixed time, with one recipe, and writes them to arvid/assets.

    python benchmarks/demo/train_tokenizers.py --seconds 1000

The first quarter of the time goes to single frames, where colours and edges are learned at a part of the cost, the rest
to whole clips; the learning rate falls over the time as a half cosine. So the files are what a CPU can reach in that
time, and another machine takes another number of steps: the record beside each file says how many it took, and the PSNR
on sprites that the training never saw. The files in place came from an earlier form of this loop (`note` in their
records). `arvid fit` with configs/settings/sprites-tokenizers.yaml trains by steps.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from arvid import __version__
from arvid.contracts import VideoTokenizer
from arvid.data.collate import collate
from arvid.data.datamodule import VideoExamples
from arvid.data.sprites import Sprites
from arvid.evaluation.records import hardware
from arvid.files import write_json
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import load_tokenizer, save_tokenizer
from arvid.training.tokenizer_module import psnr

ASSETS = Path(__file__).parents[2] / "arvid" / "assets"
BACKBONE = Backbone(
    base=16,
    multipliers=(1, 1, 2),
    strides=((2, 2, 2), (2, 2, 2)),
    num_units=(0, 2, 1),
    num_mid_units=0,
    num_groups=4,
)
NAMES = ("vae3d", "magvit_fsq")
NUM_TRAIN, NUM_UNSEEN = 4096, 512
IMAGES, CLIPS = 24, 3
"""Batch of single frames and of whole clips."""
IMAGE_TIME = 0.25
PEAK_LR, WARMUP_STEPS = 6e-3, 100


def build(name: str) -> VideoTokenizer:
    """One of the two, untrained: they differ in the bottleneck alone."""
    if name == "vae3d":
        return VAE3D(backbone=BACKBONE, latent_channels=8, kl_weight=1e-4, reconstruction="l1+l2")
    return MagvitFSQ(backbone=BACKBONE, levels=(5, 5, 5, 5, 5), reconstruction="l1+l2")


def main() -> None:
    """Train, export, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=NAMES, help="train this one alone")
    parser.add_argument("--seconds", type=float, default=1000, help="for each tokenizer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the two files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in NAMES if options.only is None else (options.only,):
        torch.manual_seed(options.seed)
        tokenizer = build(name)
        steps = train(tokenizer, options.seconds)
        export(tokenizer, options.out / f"sprites-{name}.safetensors", describe(options, steps))


def train(tokenizer: VideoTokenizer, seconds: float) -> int:
    """Train in place; the number of steps that the time was enough for."""
    clips = torch.stack([torch.from_numpy(clip.video) for clip in Sprites(NUM_TRAIN, seed=0)])
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    step, started = 0, time.monotonic()
    with tqdm(total=round(seconds), unit="s") as bar:
        while (done := (time.monotonic() - started) / seconds) < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, done)
            losses = tokenizer.training_losses(draw(clips, done))
            optimizer.zero_grad()
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
            optimizer.step()
            step += 1
            bar.update(round(done * seconds) - bar.n)
    return step


def learning_rate(step: int, done: float) -> float:
    """After the warm-up a half cosine over the share of the time that is done."""
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * done))


def draw(clips: Tensor, done: float) -> Tensor:
    """A batch in [-1, 1]: single frames at first, then whole clips."""
    if done < IMAGE_TIME:
        which, when = torch.randint(len(clips), (IMAGES,)), torch.randint(clips.shape[1], (IMAGES,))
        chosen = clips[which, when][:, None]
    else:
        chosen = clips[torch.randint(len(clips), (CLIPS,))]
    return chosen.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (B, 3, T, H, W)


def describe(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """How a tokenizer came about."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "steps": steps,
        "seconds": options.seconds,
        "seed": options.seed,
        "unseen": f"Sprites({NUM_UNSEEN}, seed=1), mean over clips",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{hardware()}, {torch.get_num_threads()} threads",
    }


def export(tokenizer: VideoTokenizer, path: Path, record: dict[str, Any]) -> None:
    """Write file and record; the PSNR is that of the fp16 weights."""
    save_tokenizer(tokenizer, path, record, half=True)
    record["psnr_unseen"] = measure(load_tokenizer(path))
    save_tokenizer(tokenizer, path, record, half=True)
    write_json(path.with_suffix(".json"), record)
    print(f"{path}: {record['psnr_unseen']} dB, {path.stat().st_size} bytes")


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
