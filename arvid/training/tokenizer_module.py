"""Training of a tokenizer: a thin LightningModule around any VideoTokenizer with `training_losses`."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from arvid.contracts import UserError, VideoTokenizer
from arvid.training.export import describe
from arvid.training.optimizer import OptimizerConfig, build_optimizer
from arvid.training.step import log_step

TOKENIZER_KEY = "tokenizer"
"""Where a checkpoint keeps the tokenizer's name and constructor arguments."""
DEFAULT_OPTIMIZER = OptimizerConfig(lr=1e-4)


class TokenizerModule(LightningModule):
    """Trains a tokenizer on batches with the key `video`, float (B, 3, T, H, W) in [-1, 1].

    Logs the tokenizer's own losses as `train_*` and `val_*`, and `val_psnr`: the mean over clips of each clip's
    PSNR in dB, of what `decode(encode(video))` gives.

    Args:
        tokenizer: what is trained.
        optimizer: AdamW's settings and the schedule.
        image_steps: steps at the start that see single frames (`images_per_clip` random ones of each clip, each
            as a clip of its own): colours and edges are learned there at a part of the cost. Tokenizers that are
            not causal cannot take single frames.
        images_per_clip: see image_steps.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        optimizer: OptimizerConfig = DEFAULT_OPTIMIZER,
        image_steps: int = 0,
        images_per_clip: int = 4,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optimizer_config = optimizer
        self.image_steps = image_steps
        self.images_per_clip = images_per_clip
        self.psnr = MeanMetric()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        video = batch["video"]
        if self.global_step < self.image_steps:
            video = random_frames(video, self.images_per_clip)
        return log_step(self, self.tokenizer.training_losses(video), "train", len(video))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        video = batch["video"]
        log_step(self, self.tokenizer.training_losses(video), "val", len(video))
        reconstruction = self.tokenizer.decode(self.tokenizer.encode(video))
        self.psnr.update(psnr(reconstruction, video))
        self.log("val_psnr", self.psnr, prog_bar=True, batch_size=len(video))

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(self.tokenizer, self.optimizer_config, max_steps=steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TOKENIZER_KEY] = describe(self.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from the checkpoint of another tokenizer."""
        stored, own = checkpoint.get(TOKENIZER_KEY), describe(self.tokenizer)
        if stored != own:
            raise UserError(
                f"The checkpoint is of another tokenizer: {stored} there, {own} here. "
                "Use another --run folder, or delete this one."
            )


def random_frames(video: Tensor, count: int) -> Tensor:
    """`count` random frames of each clip (B, 3, T, H, W) as clips of one frame (B·count, 3, 1, H, W)."""
    batch, _, num_frames, _, _ = video.shape
    frames = torch.randint(num_frames, (batch, count), device=video.device)
    clips = torch.arange(batch, device=video.device)[:, None]
    return video[clips, :, frames].flatten(0, 1).unsqueeze(2)


def psnr(reconstruction: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB of each clip (B,), for (B, 3, T, H, W) in [-1, 1]; at most 100."""
    error = (reconstruction.float() - video.float()).square().flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()
