"""Training of a tokenizer: a thin LightningModule around any VideoTokenizer with `training_losses`."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from arvid.contracts import VideoTokenizer
from arvid.training.export import describe
from arvid.training.optimizer import OptimizerConfig, build_optimizer

TOKENIZER_KEY = "tokenizer"
"""Where a checkpoint keeps the tokenizer's name and constructor arguments."""
DEFAULT_OPTIMIZER = OptimizerConfig(lr=1e-4)


@runtime_checkable
class Rescales(Protocol):
    """A tokenizer whose continuous tokens are scaled by stored statistics."""

    def rescale(self, mean: Tensor, std: Tensor) -> None:
        """Fold the measured mean and standard deviation of each channel of the tokens into the scaling."""
        ...


class ChannelMoments(Metric):
    """Mean and standard deviation of each channel of tokens (B, t, h, w, C)."""

    sums: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        zeros = torch.zeros(2, channels, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, tokens: Tensor) -> None:
        values = tokens.double().flatten(0, -2)  # (N, C)
        self.sums = self.sums + torch.stack([values.sum(0), values.square().sum(0)])
        self.count = self.count + len(values)

    def compute(self) -> tuple[Tensor, Tensor]:
        mean, square = self.sums / self.count
        return mean.float(), (square - mean.square()).clamp_min(0).sqrt().float()


class TokenizerModule(LightningModule):
    """Trains a tokenizer on batches with the key `video`, float (B, 3, T, H, W) in [-1, 1].

    Logs the tokenizer's own losses as `train_*` and `val_*`, and `val_psnr`: the mean over clips of each clip's
    PSNR in dB, of what `decode(encode(video))` gives. While fitting, each validation also measures the mean and
    standard deviation of continuous tokens and has the tokenizer scale them to 0 and 1.

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
        spec = tokenizer.spec
        self.moments = ChannelMoments(spec.size) if spec.type == "continuous" else None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        video = batch["video"]
        if self.global_step < self.image_steps:
            video = random_frames(video, self.images_per_clip)
        return self._step(video, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        video = batch["video"]
        self._step(video, "val")
        tokens = self.tokenizer.encode(video)
        self.psnr.update(psnr(self.tokenizer.decode(tokens), video))
        self.log("val_psnr", self.psnr, prog_bar=True, batch_size=len(video))
        if self.moments is not None:
            self.moments.update(tokens)

    def on_validation_epoch_end(self) -> None:
        if self.moments is None:
            return
        if self.trainer.state.fn == TrainerFn.FITTING and isinstance(self.tokenizer, Rescales):
            self.tokenizer.rescale(*self.moments.compute())
        self.moments.reset()

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(
            self.tokenizer.named_parameters(), self.optimizer_config, max_steps=steps
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TOKENIZER_KEY] = describe(self.tokenizer)

    def _step(self, video: Tensor, stage: str) -> Tensor:
        losses = self.tokenizer.training_losses(video)
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(f"{stage} loss is {losses['loss'].item()}: {losses}")
        named = {f"{stage}_{name}": value.detach() for name, value in losses.items()}
        self.log_dict(
            named, on_step=stage == "train", on_epoch=stage == "val", batch_size=len(video)
        )
        return losses["loss"]


def random_frames(video: Tensor, count: int) -> Tensor:
    """`count` random frames of each clip (B, 3, T, H, W) as clips of one frame (count·B, 3, 1, H, W)."""
    frames = torch.randint(video.shape[2], (count,), device=video.device).tolist()
    return torch.cat([video[:, :, t : t + 1] for t in frames])


def psnr(reconstruction: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB of each clip (B,), for (B, 3, T, H, W) in [-1, 1]; at most 100."""
    error = (reconstruction.float() - video.float()).square().flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()
