"""Training that begins with another run's weights: text-to-video from text-to-image, say."""

from __future__ import annotations

import logging

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from arvid.contracts import UserError
from arvid.training.generator_module import load_generator

logger = logging.getLogger(__name__)


class StartFrom(Callback):
    """Copies the weights of another generator, wherever name and shape are the same, and says which stay new.

    It has to come before weights are averaged: put it first among the callbacks. A run that goes on where it was
    interrupted has its own weights.

    Args:
        checkpoint: run folder or file; imported models will do.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises UserError if nothing of the other fits."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise UserError("StartFrom must come before the callback that averages weights.")
        other = load_generator(self.checkpoint).to("cpu").state_dict()
        own = {k: v for k, v in pl_module.state_dict().items() if not k.startswith("tokenizer.")}
        found = {k: other[k] for k, v in own.items() if k in other and other[k].shape == v.shape}
        if not found:
            raise UserError(f"{self.checkpoint}: none of its weights fits this model.")
        pl_module.load_state_dict(found, strict=False)
        new = sorted(own.keys() - found.keys())
        logger.info("%d tensors begin as in %s.", len(found), self.checkpoint)
        if new:
            logger.warning("%d tensors begin anew: %s.", len(new), ", ".join(new))
