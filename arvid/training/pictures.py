"""Writes a training's sample clips and reconstructions to the run folder, TensorBoard and wandb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from arvid.data.collate import to_uint8
from arvid.data.video import write_video
from arvid.sampling.contact_sheet import side_by_side, write_sheet

NUM_CLIPS = 4
FPS = 8.0


def show_video(
    trainer: Trainer, name: str, frames: UInt8[np.ndarray, "t h w 3"], fps: float
) -> Path:
    """Write RUN/<name>/step-*.mp4 and send the frames to the loggers. Returns the file's path."""
    step = trainer.global_step
    path = Path(trainer.default_root_dir) / name / f"step-{step:07d}.mp4"
    write_video(path, frames, fps)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
            logger.experiment.add_images(name, video, step)
        elif isinstance(logger, WandbLogger):
            logger.log_video(name, [str(path)], step=step)
    return path


def show_reconstructions(
    trainer: Trainer,
    video: Float[Tensor, "b 3 T H W"],
    reconstruction: Float[Tensor, "b 3 T H W"],
) -> None:
    """Write RUN/reconstructions/step-*.mp4 (first clips above their reconstructions) and a .png with rows of frames.

    Raises UserError if the video cannot be written.
    """
    clips, made = (to_uint8(x[:NUM_CLIPS]).cpu().numpy() for x in (video, reconstruction))
    white = np.full_like(side_by_side(clips)[:, :2], 255)
    stacked = np.concatenate([side_by_side(clips), white, side_by_side(made)], axis=1)
    path = show_video(trainer, "reconstructions", stacked, FPS)
    rows = np.stack([clips, made], axis=1)  # (clip, row, T, H, W, 3)
    write_sheet(path.with_suffix(".png"), rows, rows=("clip", "reconstruction"))
