"""Adversarial training of a tokenizer: discriminators, their losses and their regularisers.

The paper on Next-Block Prediction only says "PatchGAN" with weight 0.1. The defaults here are our choice: 3-D PatchGAN
of 64 channels and 3 layers, hinge loss, from the first step, no regularisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arvid.nn.discriminator import PatchDiscriminator
from arvid.nn.draws import draw
from arvid.ranges import at_least
from arvid.training.losses import take_frames
from arvid.training.optimizer import OptimizerConfig

LECAM_DECAY = 0.999
MAX_ADAPTIVE = 1e4
Logits = list[Tensor]
"""One tensor for each discriminator."""


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Options of a discriminator that is trained together with the tokenizer."""

    weight: float = 0.1
    """Weight of the adversarial loss."""
    discriminator: Literal["3d", "2d+3d"] = "3d"
    """3d: one discriminator over clips. 2d+3d: a second one over one random frame of each clip; losses are summed."""
    channels: int = 64
    """Channels of the discriminator's first layer."""
    num_layers: int = 3
    """Layers of the discriminator that halve the resolution."""
    loss: Literal["hinge", "non-saturating"] = "hinge"
    """Loss of the tokenizer and of the discriminator."""
    start_step: int = 0
    """First step with a discriminator. A later start is more stable, because early reconstructions are all bad."""
    adaptive: bool = False
    """Multiply `weight` by the ratio of gradient norms: other losses over adversarial loss."""
    r1: float = 0.0
    """R1 penalty (arXiv 1801.04406): r1 / 2 times the squared gradient of a real clip's mean logit."""
    r1_every: int = 16
    """Steps between two R1 penalties (each needs a second backward pass). The penalty is multiplied by this number."""
    lecam: float = 0.0
    """LeCAM (arXiv 2104.03310): weight of the squared distance between logits and the other side's running mean."""
    optimizer: OptimizerConfig | None = None
    """Optimiser of the discriminator; null: as the tokenizer's. Its schedule begins at start_step."""

    def __post_init__(self) -> None:
        at_least(0).require("adversarial.", weight=self.weight, r1=self.r1, lecam=self.lecam)
        at_least(0).require("adversarial.", start_step=self.start_step)
        at_least(1).require("adversarial.", r1_every=self.r1_every)


class Adversary(nn.Module):
    """The discriminators, and the adversarial losses of tokenizer and discriminators."""

    anchors: Tensor
    """Running means of the logits: (2, discriminators), first of real clips, then of reconstructions."""
    num_seen: Tensor
    """Number of updates of `anchors`."""

    def __init__(self, options: Adversarial) -> None:
        super().__init__()
        self.options = options
        self.kinds = options.discriminator.split("+")
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(
                channels=options.channels,
                num_layers=options.num_layers,
                across_time=kind == "3d",
            )
            for kind in self.kinds
        )
        self.register_buffer("anchors", torch.zeros(2, len(self.kinds)))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Logits:
        """Logits (B, 1, T', h, w) of each discriminator, in float32."""
        return [
            network(video if kind == "3d" else _one_frame(video)).float()
            for kind, network in zip(self.kinds, self.discriminators, strict=True)
        ]

    def generator_loss(self, reconstruction: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, ""]:
        """Adversarial loss of the tokenizer. Its gradient reaches only the reconstruction."""
        self.requires_grad_(False)
        logits = self(reconstruction)
        self.requires_grad_(True)
        hinge = self.options.loss == "hinge"
        return _total([-x.mean() if hinge else F.softplus(-x).mean() for x in logits])

    def discriminator_loss(
        self,
        video: Float[Tensor, "b 3 T H W"],
        reconstruction: Float[Tensor, "b 3 T H W"],
        step: int,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of the discriminators, and its parts for the log: `discriminator`, regularisers, mean logits."""
        # one pass over real and reconstructed clips is faster than two
        both = self(torch.cat([video, reconstruction.detach().to(video.dtype)]))
        real, fake = (list(side) for side in zip(*(x.chunk(2) for x in both), strict=True))
        loss = _total([self._classification(r, f) for r, f in zip(real, fake, strict=True)])
        parts = {"discriminator": loss}
        if self.options.lecam:
            parts["lecam"] = self._lecam(real, fake)
            loss = loss + self.options.lecam * parts["lecam"]
        if self.options.r1 and step % self.options.r1_every == 0:
            parts["r1"] = self._r1(video)
            loss = loss + self.options.r1 / 2 * self.options.r1_every * parts["r1"]
        parts["logit_real"], parts["logit_fake"] = _means(real).mean(), _means(fake).mean()
        return loss, parts

    def _classification(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.options.loss == "hinge":
            return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def _lecam(self, real: Logits, fake: Logits) -> Tensor:
        """LeCAM as in its authors' code: only logits beyond the other side's mean count. The paper has no such ReLU."""
        with torch.no_grad():
            self.num_seen += 1
            # a plain mean of the first 1 / (1 - decay) steps, then an exponential one: no bias towards zero
            share = (1 / self.num_seen).clamp_min(1 - LECAM_DECAY)
            self.anchors.lerp_(torch.stack([_means(real), _means(fake)]), share)
        beyond_fake = [
            F.relu(x - a).square().mean() for x, a in zip(real, self.anchors[1], strict=True)
        ]
        below_real = [
            F.relu(a - x).square().mean() for x, a in zip(fake, self.anchors[0], strict=True)
        ]
        return _total(beyond_fake + below_real)

    def _r1(self, video: Tensor) -> Tensor:
        """Squared gradient norm of each clip's mean logit, averaged over clips; in float32."""
        with torch.autocast(video.device.type, enabled=False):
            video = video.detach().float().requires_grad_()
            # a sum over clips: a clip's gradient does not depend on other clips
            score = _total([x.flatten(1).mean(1).sum() for x in self(video)])
            (gradient,) = torch.autograd.grad(score, video, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()


def adaptive_weight(
    similarity: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    reconstruction: Float[Tensor, "b 3 T H W"],
) -> Float[Tensor, ""]:
    """Ratio of the two losses' gradient norms at the reconstruction: `similarity` over `adversarial`; at most 10,000.

    VQGAN (arXiv 2012.09841) compares gradients at the decoder's last layer. At the decoder's output, a tokenizer does
    not have to name its last layer.
    """
    wanted, given = (
        torch.autograd.grad(loss, reconstruction, retain_graph=True)[0].float().norm()
        for loss in (similarity, adversarial)
    )
    return (wanted / (given + 1e-8)).clamp(max=MAX_ADAPTIVE).detach()


def _one_frame(video: Tensor) -> Tensor:
    """A random frame of each clip (B, C, T, H, W) as a clip of one: (B, C, 1, H, W)."""
    index = draw(partial(torch.randint, video.shape[2], device=video.device), [len(video), 1])
    return take_frames(video, index)


def _means(logits: Logits) -> Tensor:
    """Mean logit of each discriminator."""
    return torch.stack([x.detach().mean() for x in logits])


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()
