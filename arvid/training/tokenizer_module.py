"""Training of a tokenizer: a thin LightningModule around any VideoTokenizer with `training_losses`.

The training recipe is the same for every tokenizer: pixel errors, LPIPS, a discriminator, steps on single frames. A
tokenizer only provides its reconstruction and the losses of its bottleneck.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from arvid.contracts import UserError, VideoTokenizer
from arvid.metrics.codebook import CodebookUse
from arvid.nn.draws import counted_clips, draw
from arvid.ranges import SHARE, at_least
from arvid.training.adversarial import Adversarial, Adversary, adaptive_weight
from arvid.training.export import describe
from arvid.training.guards import CollapseGuard, DiscriminatorGuard, explain_nonfinite, warn
from arvid.training.keys import SETTING_KEY, TOKENIZER_KEY
from arvid.training.losses import Perceptual, PerceptualLoss, Reconstruction, take_frames
from arvid.training.optimizer import OptimizerConfig, build_optimizer, may_fuse
from arvid.training.pictures import show_reconstructions
from arvid.training.resuming import check_resume, stored_description
from arvid.training.step import log_step, one_or_nan, weight

DEFAULT_OPTIMIZER = OptimizerConfig(lr=1e-4)
DEFAULT_RECONSTRUCTION = Reconstruction()


@dataclass(frozen=True, kw_only=True)
class Images:
    """Steps that train on random single frames, each as a clip of one frame: a cheap way to learn colours and edges.

    The choice depends only on the step's number, so all processes agree. Only causal tokenizers can take single frames.
    """

    first_steps: int = 0
    """Number of steps at the start that all use single frames."""
    share: float = 0.0
    """Share of the later steps that use single frames, evenly spaced."""
    per_clip: int = 4
    """Frames that are taken from each clip of the batch."""

    def __post_init__(self) -> None:
        at_least(0).require("images.", first_steps=self.first_steps)
        SHARE.require("images.", share=self.share)
        at_least(1).require("images.", per_clip=self.per_clip)

    def at(self, step: int) -> bool:
        """Whether a step (from 0) uses single frames."""
        later = step - self.first_steps
        # True where `later * share` passes an integer: evenly spaced steps, without state
        return later < 0 or math.floor((later + 1) * self.share) > math.floor(later * self.share)


class TokenizerModule(LightningModule):
    """Trains a tokenizer on batches with the key `video`, float (B, 3, T, H, W) in [-1, 1].

    Logs each loss as `train_*` and `val_*`. Validation also logs metrics of `decode(encode(video))`: `val_psnr` (dB,
    mean over clips), `val_lpips` if LPIPS is on, and for discrete tokens `val_codebook_share` and
    `val_codebook_perplexity`. The first clips of each validation are written to RUN/reconstructions.

    With a discriminator there are two optimisers, and Lightning's optimisation is manual. `trainer.gradient_clip_val`
    (applied to each optimiser separately) and `trainer.accumulate_grad_batches` still work. No backward pass reaches
    all parameters, so DDP must be `ddp_find_unused_parameters_true`.

    Args:
        tokenizer: the tokenizer to train.
        optimizer: options of the optimiser and its schedule.
        reconstruction: weights of the pixel errors.
        perceptual: LPIPS loss, or null.
        adversarial: adversarial loss, or null.
        images: steps on single frames.
        gradient_checkpointing: compute activations twice instead of storing them: less memory, more time. Needs
            networks with the attribute `gradient_checkpointing`, as arvid's causal tokenizers have.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        optimizer: OptimizerConfig = DEFAULT_OPTIMIZER,
        *,
        reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION,
        perceptual: Perceptual | None = None,
        adversarial: Adversarial | None = None,
        images: Images = Images(),
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optimizer_config = optimizer
        self.reconstruction = reconstruction
        self.perceptual = PerceptualLoss(perceptual) if perceptual else None
        self.adversary = Adversary(adversarial) if adversarial else None
        self.images = images
        if gradient_checkpointing:
            _checkpoint_gradients(tokenizer)
        self.psnr = MeanMetric()
        discrete = tokenizer.spec.type == "discrete"
        self.codebook = CodebookUse(tokenizer.spec.size) if discrete else None
        self.collapse_guard = CollapseGuard()
        self.discriminator_guard = DiscriminatorGuard()
        self.description: dict[str, Any] = {}
        """Setting of the run as plain data; stored in its checkpoints."""
        self.allow_changes = False
        """Whether a run may resume although its setting differs from the checkpoint's."""

    def setup(self, stage: str) -> None:
        # Not in __init__: with manual optimisation the trainer refuses options for clipping and accumulation, which
        # it checks before `setup`. Here `on_before_optimizer_step` and `_update` do both.
        self.automatic_optimization = self.adversary is None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """The loss; None with a discriminator, since both optimisers are then updated here."""
        video = batch["video"]
        if self.images.at(self.global_step):
            video = random_frames(video, self.images.per_clip)
        to_minimise, losses = self.losses(video)
        log_step(self, losses, "train", len(video))
        factor = one_or_nan(losses)
        if self.adversary is None:
            return losses["loss"] * factor
        self._update([loss * factor for loss in to_minimise], batch_idx)
        return None

    def losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[list[Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        """The loss that each optimiser minimises in this step, and all losses by name."""
        reconstruction, losses = self._losses(video)
        if self.adversary is None or self.global_step < self.adversary.options.start_step:
            return [losses["loss"]], losses
        return self._add_adversarial(losses, reconstruction, video), losses

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        video = batch["video"]
        log_step(self, self._losses(video)[1], "val", len(video))
        tokens = self.tokenizer.encode(video)
        reconstruction = self.tokenizer.decode(tokens)
        num_counted = counted_clips(len(video))
        if num_counted:
            self.psnr.update(psnr(reconstruction, video))
        self.log("val_psnr", self.psnr, prog_bar=True, batch_size=num_counted)
        if self.perceptual is not None:
            lpips = self.perceptual.of_all_frames(reconstruction, video)
            self.log("val_lpips", lpips, batch_size=weight(self, len(video)), sync_dist=True)
        if self.codebook is not None and num_counted:
            self.codebook.update(tokens)
        self.collapse_guard.update(video, reconstruction)
        if batch_idx == 0 and self.trainer.is_global_zero:
            show_reconstructions(self.trainer, video, reconstruction)

    def on_validation_epoch_end(self) -> None:
        self.collapse_guard.end_validation()
        if self.codebook is not None:
            use = self.codebook.compute()  # over all processes
            self.codebook.reset()
            self.log_dict(
                {f"val_codebook_{name}": value for name, value in use._asdict().items()},
                sync_dist=True,
            )

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        fused = may_fuse(self.trainer.precision, self.device)
        generator = build_optimizer(
            self.tokenizer, self.optimizer_config, max_steps=steps, fused=fused
        )
        if self.adversary is None:
            return generator
        options = self.adversary.options
        if 0 < steps <= options.start_step:
            raise UserError(
                f"The discriminator would start at step {options.start_step}, but training ends after {steps} steps: "
                "lower model.adversarial.start_step, or leave model.adversarial out."
            )
        config = options.optimizer or self.optimizer_config
        return [
            generator,
            build_optimizer(
                self.adversary, config, max_steps=steps - options.start_step, fused=fused
            ),
        ]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.automatic_optimization:
            self.clip_gradients(optimizer)  # by trainer.gradient_clip_val

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TOKENIZER_KEY] = describe(self.tokenizer)
        checkpoint[SETTING_KEY] = json.dumps(self.description)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if the checkpoint has another tokenizer, discriminator or setting.

        See `arvid.training.resuming`.
        """
        stored, own = checkpoint.get(TOKENIZER_KEY), describe(self.tokenizer)
        advice = "Use another --run folder, or delete this one."
        if stored != own:
            raise UserError(
                f"The checkpoint is of another tokenizer: {stored} there, {own} here. {advice}"
            )
        there, here = (_adversary_shapes(x) for x in (checkpoint["state_dict"], self.state_dict()))
        if there != here:
            raise UserError(
                "The checkpoint's discriminator differs from this run's, or one of the two has none: model.adversarial "
                f"must not change (to start a discriminator later, use start_step from the beginning). {advice}"
            )
        self._require_setting(checkpoint)

    def _require_setting(self, checkpoint: dict[str, Any]) -> None:
        if SETTING_KEY not in checkpoint:
            warn(
                "The checkpoint is from a version of arvid that stored no setting for tokenizers. Check yourself that "
                "learning rate, batch, seed, losses and clips are as before."
            )
            return
        configs = [self.optimizer_config]
        if self.adversary is not None and self.adversary.options.optimizer is not None:
            configs.append(self.adversary.options.optimizer)
        check_resume(
            stored_description(checkpoint[SETTING_KEY]),
            self.description,
            step=checkpoint["global_step"],
            needs_length=any(config.needs_length for config in configs),
            allow_changes=self.allow_changes,
            model=type(self),
        )

    def explain_nonfinite(self, batch: dict[str, Any]) -> str:
        """Message for the user: where the values of a batch stop being finite, and what to do."""
        return explain_nonfinite(self, batch["video"], lambda: self._compute_all(batch["video"]))

    def _losses(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, and `loss` with its parts, without the adversarial loss."""
        reconstruction, losses = self.tokenizer.training_losses(video)
        pixels = self.reconstruction.loss(reconstruction, video)
        losses = {**losses, "reconstruction": pixels, "loss": losses.get("loss", 0) + pixels}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstruction, video)
            losses["loss"] = losses["loss"] + self.perceptual.options.weight * losses["perceptual"]
        return reconstruction, losses

    def _add_adversarial(
        self, losses: dict[str, Tensor], reconstruction: Tensor, video: Tensor
    ) -> list[Tensor]:
        """Add the adversarial losses to `losses`. Returns the loss of each optimiser."""
        assert self.adversary is not None
        options = self.adversary.options
        adversarial = self.adversary.generator_loss(reconstruction)
        weight: Tensor | float = options.weight
        if options.adaptive:
            ratio = adaptive_weight(losses["loss"], adversarial, reconstruction)
            losses["adaptive_weight"], weight = ratio, weight * ratio
        losses["adversarial"] = adversarial
        losses["loss"] = losses["loss"] + weight * adversarial
        loss, parts = self.adversary.discriminator_loss(video, reconstruction, self.global_step)
        losses.update(parts)
        self.discriminator_guard.update(parts["discriminator"], self.global_step)
        return [losses["loss"], loss]

    def _update(self, losses: list[Tensor], batch_idx: int) -> None:
        """Backpropagate each loss for its optimiser; step after every `accumulate_grad_batches` batches.

        The discriminator's loss, the last one, is missing before its start step.
        """
        num_batches = self.trainer.accumulate_grad_batches
        due = (batch_idx + 1) % num_batches == 0
        pairs = zip(self.optimizers(), self.lr_schedulers(), strict=True)  # type: ignore[arg-type]
        for i, (loss, (optimizer, schedule)) in enumerate(zip(losses, pairs, strict=False)):
            # Only this optimiser's parameters get gradients. DDP synchronises them with the last batch of a step.
            with optimizer.toggle_model(sync_grad=due):
                self.manual_backward(loss / num_batches)
            if due and i == 0:
                optimizer.step()
            elif due:  # via the strategy, so that `trainer.global_step` counts one step, not two
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
            if due:
                optimizer.zero_grad()
                schedule.step()

    def _compute_all(self, video: Tensor) -> None:
        reconstruction, _ = self._losses(video)
        if self.adversary is not None:
            self.adversary(reconstruction)


def _checkpoint_gradients(tokenizer: VideoTokenizer) -> None:
    switches: list[Any] = [m for m in tokenizer.modules() if hasattr(m, "gradient_checkpointing")]
    if not switches:
        raise UserError(f"{type(tokenizer).__name__} has no networks with gradient checkpointing.")
    for module in switches:
        module.gradient_checkpointing = True


def _adversary_shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in state.items() if name.startswith("adversary.")}


def random_frames(video: Tensor, count: int) -> Tensor:
    """`count` random frames of each clip (B, 3, T, H, W) as clips of one frame (B·count, 3, 1, H, W)."""
    index = draw(partial(torch.randint, video.shape[2], device=video.device), [len(video), count])
    return rearrange(take_frames(video, index), "b c n h w -> (b n) c 1 h w")


def psnr(reconstruction: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB of each clip (B,), for (B, 3, T, H, W) in [-1, 1]; at most 100."""
    error = (reconstruction.float() - video.float()).square().flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()
