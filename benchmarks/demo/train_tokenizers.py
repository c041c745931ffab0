"""Trains the two embedded sprites tokenizers, with one recipe, and writes them to arvid/assets.

    python benchmarks/demo/train_tokenizers.py

Beside each safetensors file (fp16, under 1 MB) lies a record of how it came about: command, steps, seed,
PSNR on sprites that the training never saw, date, hardware, seconds.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

import arvid  # isort: skip  # before Lightning: makes torchvision work beside any torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from arvid.contracts import VideoTokenizer
from arvid.data.sprites import Sprites
from arvid.files import write_json
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import load_tokenizer, save_tokenizer
from arvid.training.optimizer import OptimizerConfig
from arvid.training.tokenizer_module import TokenizerModule

ASSETS = Path(__file__).parents[2] / "arvid" / "assets"
BACKBONE = Backbone(
    base=16,
    multipliers=(1, 1, 2),
    strides=((2, 2, 2), (2, 2, 2)),
    num_units=(0, 2, 1),
    num_mid_units=0,
    num_groups=4,
)


def tokenizers() -> dict[str, VideoTokenizer]:
    """The two tokenizers, untrained: they differ in the bottleneck alone."""
    return {
        "vae3d": VAE3D(
            backbone=BACKBONE, latent_channels=4, kl_weight=1e-4, reconstruction="l1+l2"
        ),
        "magvit_fsq": MagvitFSQ(backbone=BACKBONE, levels=(8, 5, 5, 5), reconstruction="l1+l2"),
    }


class Frames(Dataset[dict[str, Any]]):
    """Windows of a dataset's clips, rendered once and kept as bytes: {"video": float (3, T, H, W)}."""

    def __init__(self, num_clips: int, *, seed: int, num_frames: int) -> None:
        clips = Sprites(num_clips, seed=seed)
        self.clips = torch.stack([torch.from_numpy(clip.video) for clip in clips])
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clips[index]  # (T, H, W, 3)
        start = int(torch.randint(len(clip) - self.num_frames + 1, ()))
        window = clip[start : start + self.num_frames].permute(3, 0, 1, 2)
        return {"video": window.float() / 127.5 - 1}


def train(name: str, tokenizer: VideoTokenizer, options: argparse.Namespace) -> dict[str, Any]:
    """Train in place; the record of it."""
    seed_everything(options.seed, workers=True)
    training = DataLoader(
        Frames(options.clips, seed=0, num_frames=options.num_frames), options.batch, shuffle=True
    )
    validation = DataLoader(Frames(options.unseen, seed=1, num_frames=17), 16)
    config = OptimizerConfig(lr=options.lr)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        gradient_clip_val=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=options.steps,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=20,
        logger=CSVLogger(options.logs, name=name),
        callbacks=[TQDMProgressBar(refresh_rate=20)],
    )
    module = TokenizerModule(tokenizer, config, image_steps=options.image_steps)
    started = time.monotonic()
    trainer.fit(module, training, validation)
    if isinstance(tokenizer, VAE3D):
        tokenizer.measure_latents(batch["video"] for batch in validation)
    return {
        "tokenizer": name,
        "command": shlex.join(["python", *sys.argv]),
        "steps": options.steps,
        "image_steps": options.image_steps,
        "batch": options.batch,
        "lr": options.lr,
        "seed": options.seed,
        "data": Sprites(options.clips, seed=0).fingerprint(),
        "version": arvid.__version__,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "seconds": round(time.monotonic() - started, 1),
    }


def measure(tokenizer: VideoTokenizer, num_clips: int) -> dict[str, Any]:
    """PSNR in dB on sprites that no training saw: mean over clips of what `decode(encode(video))` gives."""
    clips = DataLoader(Frames(num_clips, seed=1, num_frames=17), 16)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(TokenizerModule(tokenizer), clips, verbose=False)
    return {"psnr_unseen": round(metrics["val_psnr"], 3), "unseen": f"Sprites({num_clips}, seed=1)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(tokenizers()), help="train this one alone")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--image-steps", type=int, default=1500, help="of these on single frames")
    parser.add_argument("--num-frames", type=int, default=17, help="frames of a training window")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=4096, help="training clips, rendered once")
    parser.add_argument("--unseen", type=int, default=512, help="clips of the validation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--logs", type=Path, default=Path("runs/tokenizers"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, tokenizer in tokenizers().items():
        if options.only in (None, name):
            record = train(name, tokenizer, options)
            path = options.out / f"sprites-{name}.safetensors"
            save_tokenizer(tokenizer, path, record, half=True)
            record |= measure(load_tokenizer(path), options.unseen)  # of the fp16 weights
            save_tokenizer(tokenizer, path, record, half=True)
            write_json(path.with_suffix(".json"), record)
            print(f"{path}: {record['psnr_unseen']} dB, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
