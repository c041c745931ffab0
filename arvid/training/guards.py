"""Detectors of common training failures, which log a warning with advice.

Users of similar code report these: reconstructions of one solid colour, NaN losses in mixed precision, a discriminator
that wins at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SOLID = 1e-3
"""Reconstructions with less than this share of their clips' variance count as one solid colour."""
LEAST_CONTRAST = 1e-4
"""Clips with less variance within frames than this (pixels in [-1, 1]) are of one solid colour themselves."""
WON = 1e-3
"""A discriminator with a loss below this has won."""
CHECKED_EVERY = 50
"""Steps between two reads of counters on the device. (A read makes the CPU wait.)"""


@rank_zero_only
def warn(message: str) -> None:
    """Log a warning in the first process only."""
    logger.warning(message)


class CollapseGuard:
    """Warns once when reconstructions are of one colour while their clips are not.

    Args:
        patience: collapsed validations in a row before the warning; early ones may be normal.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.count = 0
        self._contrasts: list[Tensor] = []

    def update(
        self, video: Float[Tensor, "b 3 T H W"], reconstruction: Float[Tensor, "b 3 T H W"]
    ) -> None:
        """Add a batch of a validation."""
        self._contrasts.append(torch.stack([_contrast(video), _contrast(reconstruction)]))

    def end_validation(self) -> None:
        """Judge the batches added since the last call."""
        if not self._contrasts:
            return
        clips, reconstructions = torch.stack(self._contrasts).mean(0).tolist()
        self._contrasts.clear()
        solid = clips > LEAST_CONTRAST and reconstructions < SOLID * clips
        self.count = self.count + 1 if solid else 0
        if self.count == self.patience:
            warn(
                f"The reconstructions have been of one solid colour for {self.patience} validations: their variance "
                f"within frames is {reconstructions:.2g}, the clips' is {clips:.2g}. The tokenizer has collapsed. "
                "Check that pixels are in [-1, 1], lower the learning rate or give it a longer warm-up, train on "
                "single frames first (model.images.first_steps), start the discriminator later "
                "(model.adversarial.start_step), and try --trainer.precision 32-true."
            )


class DiscriminatorGuard:
    """Warns once when the discriminator's loss stays at zero: it has won, and teaches the tokenizer nothing.

    Args:
        patience: steps in a row with a loss near zero before the warning.
    """

    def __init__(self, patience: int = 500) -> None:
        self.patience = patience
        self._count: Tensor | int = 0
        self._warned = False

    def update(self, loss: Float[Tensor, ""], step: int) -> None:
        """Add the discriminator's loss of a step."""
        # counted on the device without a branch: the product resets the count to 0
        self._count = (self._count + 1) * (loss.detach() < WON)
        if self._warned or step % CHECKED_EVERY:
            return
        if int(self._count) >= self.patience:
            self._warned = True
            warn(
                f"The discriminator's loss has been zero for {int(self._count)} steps: it recognises every "
                "reconstruction, and the tokenizer learns nothing from it. Start it later "
                "(model.adversarial.start_step), lower its learning rate (model.adversarial.optimizer), or regularise "
                "it with model.adversarial.r1 or lecam."
            )


def explain_nonfinite(module: nn.Module, inputs: Tensor, run: Callable[[], object]) -> str:
    """Message that says where values stop being finite: in the batch, in the weights, or in which layer's output.

    Args:
        module: the model; layers are named as in it.
        inputs: clips or tokens of the batch.
        run: computes the losses again.
    """
    if not torch.isfinite(inputs).all():
        return "The batch itself holds values that are not finite: look for a broken clip."
    broken = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        where = (
            f"The weights are not finite either ({broken[0]} first): an earlier step broke them."
        )
    else:
        with _watching(module) as found, torch.no_grad():
            run()
        where = f"It begins in {found[0]}." if found else "No single layer's output shows it."
    return (
        f"{where} Try --trainer.precision 32-true, a lower learning rate, a longer warm-up, or "
        "--trainer.gradient_clip_val 1.0."
    )


@contextmanager
def _watching(module: nn.Module) -> Iterator[list[str]]:
    """Collects the names of leaf modules whose outputs are not finite, in the order of computation."""
    found: list[str] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_layer: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"{name} ({type(layer).__name__})")

        return layer.register_forward_hook(look)

    leaves = [(n, m) for n, m in module.named_modules() if not list(m.children())]
    handles = [watch(name, layer) for name, layer in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _contrast(video: Tensor) -> Tensor:
    """Variance over the pixels of each frame and colour of (B, 3, T, H, W), averaged over frames and colours."""
    return video.float().var((-2, -1), unbiased=False).mean()
