"""Starts a training from another run's weights, for example text-to-video from text-to-image."""

from __future__ import annotations

import logging

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from arvid.contracts import UserError
from arvid.training.generator_module import load_generator

logger = logging.getLogger(__name__)


class StartFrom(Callback):
    """Copies the weights of another generator with equal name and shape, and logs which weights are new.

    It must come before weight averaging: put it first among the callbacks. A resumed run loads its own weights
    afterwards.

    Args:
        checkpoint: run folder or file; it may be an imported model.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises UserError if no weight of the other generator fits."""
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
        logger.info("%d tensors are copied from %s.", len(found), self.checkpoint)
        if new:
            logger.warning("%d tensors are newly initialised: %s.", len(new), ", ".join(new))
