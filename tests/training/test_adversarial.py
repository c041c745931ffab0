"""Adversarial losses by hand; a training with two optimisers is exact to resume, clips, accumulates and averages."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.data.datamodule import VideoDataModule
from arvid.data.sprites import Sprites
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.adversarial import Adversarial, Adversary, adaptive_weight
from arvid.training.averaging import EMAWeightAveraging
from arvid.training.callbacks import SeedEachStep
from arvid.training.export import load_tokenizer
from arvid.training.losses import Perceptual
from arvid.training.optimizer import OptimizerConfig
from arvid.training.tokenizer_module import Images, TokenizerModule

TINY = Backbone(
    base=4, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=0, num_groups=2
)
SMALL = Adversarial(channels=16, num_layers=1)
EVERYTHING = dataclasses.replace(
    SMALL, discriminator="2d+3d", start_step=1, adaptive=True, r1=1.0, r1_every=2, lecam=0.1
)


class Mean(nn.Module):
    """A discriminator whose one logit of a clip is its mean pixel times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, video: Tensor) -> Tensor:
        return self.factor * video.mean((1, 2, 3, 4)).view(-1, 1, 1, 1, 1)


def of_means(options: Adversarial, factor: float = 1.0) -> Adversary:
    adversary = Adversary(options)
    adversary.discriminators = nn.ModuleList(Mean(factor) for _ in adversary.kinds)
    return adversary


def clips(*levels: float) -> Tensor:
    """A clip of each level."""
    return torch.tensor(levels).view(-1, 1, 1, 1, 1).expand(-1, 3, 5, 8, 8).clone()


def test_hinge() -> None:
    adversary = of_means(SMALL)
    loss, parts = adversary.discriminator_loss(clips(0.5, 3.0), clips(-0.5, -3.0), step=0)
    assert loss.item() == pytest.approx((0.5 + 0) / 4 + (0.5 + 0) / 4)
    assert parts["logit_real"].item() == pytest.approx(1.75)
    assert parts["logit_fake"].item() == pytest.approx(-1.75)
    assert adversary.generator_loss(clips(-0.5, -3.0)).item() == pytest.approx(1.75)


def test_non_saturating() -> None:
    adversary = of_means(dataclasses.replace(SMALL, loss="non-saturating"))
    loss, _ = adversary.discriminator_loss(clips(0.5), clips(-1.0), step=0)
    expected = math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.0))
    assert loss.item() == pytest.approx(expected)
    assert adversary.generator_loss(clips(-1.0)).item() == pytest.approx(math.log1p(math.e))


def test_two_discriminators_count_together() -> None:
    both = of_means(dataclasses.replace(SMALL, discriminator="2d+3d"))
    assert both.generator_loss(clips(0.5)).item() == pytest.approx(-1.0)
    assert both.discriminator_loss(clips(0.5), clips(0.5), step=0)[0].item() == pytest.approx(2)


def test_lecam_counts_what_lies_beyond_the_other_sides_mean() -> None:
    adversary = of_means(dataclasses.replace(SMALL, lecam=0.1))
    first, parts = adversary.discriminator_loss(clips(1.0), clips(-1.0), step=0)
    assert adversary.anchors.flatten().tolist() == [1.0, -1.0]
    assert parts["lecam"].item() == pytest.approx(8)  # (1 - -1)² from each side
    assert first.item() == pytest.approx(0.8)
    _, parts = adversary.discriminator_loss(clips(-3.0), clips(3.0), step=1)
    assert adversary.anchors.flatten().tolist() == [-1.0, 1.0]  # the mean of two
    assert parts["lecam"].item() == 0
    adversary.num_seen.fill_(10**6)
    adversary.discriminator_loss(clips(9.0), clips(1.0), step=2)
    assert adversary.anchors[0].item() == pytest.approx(-1 + 0.001 * 10)


def test_r1_is_the_gradient_at_real_clips_now_and_then(rounding: Callable[..., Any]) -> None:
    options = dataclasses.replace(SMALL, r1=4.0, r1_every=3)
    adversary = of_means(options, factor=2.0)
    pixels = 3 * 5 * 8 * 8
    rel = rounding(torch.ones(1), pixels)["atol"]
    loss, parts = adversary.discriminator_loss(clips(9.0, 9.0), clips(-9.0, -9.0), step=3)
    assert parts["r1"].item() == pytest.approx(4 / pixels, rel=rel)
    assert loss.item() == pytest.approx(4.0 / 2 * 3 * 4 / pixels, rel=rel)
    loss.backward()
    (network,) = adversary.discriminators
    assert network.factor.grad.item() == pytest.approx(4.0 / 2 * 3 * 2 * 2 / pixels, rel=rel)
    assert "r1" not in adversary.discriminator_loss(clips(9.0), clips(-9.0), step=4)[1]


def test_each_side_has_its_gradient() -> None:
    adversary = Adversary(SMALL)
    video, made = torch.randn(2, 2, 3, 5, 16, 16)
    made.requires_grad_()
    adversary.generator_loss(made).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())
    made.grad = None
    adversary.discriminator_loss(video, made, step=0)[0].backward()
    assert made.grad is None
    assert all(p.grad is not None for p in adversary.parameters())


def test_the_adaptive_weight_is_the_ratio_of_the_gradients() -> None:
    made = torch.randn(1, 3, 1, 4, 4, requires_grad=True)
    ratio = adaptive_weight(2 * made.sum(), -0.5 * made.sum(), made)
    assert ratio.item() == pytest.approx(4)
    assert adaptive_weight(made.sum(), 0 * made.sum(), made).item() == 1e4


class Keep(Callback):
    """Saves a checkpoint after each step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            path = Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt"
            trainer.save_checkpoint(path, weights_only=False)


def module(adversarial: Adversarial | None = EVERYTHING, **options: Any) -> TokenizerModule:
    torch.manual_seed(1)
    return TokenizerModule(
        VAE3D(backbone=TINY, latent_channels=2),
        OptimizerConfig(lr=1e-3, warmup_steps=0.2, schedule="linear"),
        adversarial=adversarial,
        **options,
    )


def fit(
    trained: TokenizerModule, folder: Path, *, start: Path | None = None, **options: Any
) -> Trainer:
    batch_size = options.pop("batch_size", 2)
    callbacks = [*options.pop("callbacks", []), SeedEachStep(), Keep()]
    data = Sprites(16, num_frames=5, size=32)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=callbacks,
        use_distributed_sampler=False,
        **{"max_steps": 4, "max_epochs": -1, **options},
    )
    trainer.fit(
        trained, datamodule=VideoDataModule(data, data, batch_size=batch_size), ckpt_path=start
    )
    return trainer


def read(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def assert_equal(a: Any, b: Any, where: str) -> None:
    """Nested plain data and tensors, bit by bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        assert same, where


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_interrupted_training_goes_on_exactly(
    tmp_path: Path, precision: Any, squeeze: str
) -> None:
    def run(folder: Path, start: Path | None = None) -> None:
        ema = EMAWeightAveraging(decay=0.5, use_buffers=False)
        trained = module(
            images=Images(share=0.25, per_clip=1),
            perceptual=Perceptual(net="squeeze", backbone=squeeze, frames="one"),
        )
        fit(
            trained,
            folder,
            start=start,
            callbacks=[ema],
            precision=precision,
            gradient_clip_val=1.0,
            accumulate_grad_batches=2,
        )

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight)
    run(resumed, start=straight / "2.ckpt")
    assert not (resumed / "2.ckpt").exists()
    ours, theirs = (read(folder / "4.ckpt") for folder in (resumed, straight))
    assert ours["global_step"] == 4
    assert len(ours["optimizer_states"]) == len(ours["lr_schedulers"]) == 2
    assert "adversary.anchors" in ours["current_model_state"]
    assert not any("lpips" in key or "perceptual" in key for key in ours["state_dict"])
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_equal(ours[part], theirs[part], part)


def test_the_discriminator_joins_at_its_step_and_steps_are_counted_once(tmp_path: Path) -> None:
    trained = module(dataclasses.replace(SMALL, start_step=2))
    trainer = fit(trained, tmp_path)
    assert trainer.global_step == 4
    states = [read(tmp_path / f"{step}.ckpt") for step in (1, 2, 3, 4)]
    weights = [s["state_dict"]["adversary.discriminators.0.layers.0.weight"] for s in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    tokenizers = [s["state_dict"]["tokenizer.encoder.layers.0.conv.weight"] for s in states]
    assert not torch.equal(tokenizers[0], tokenizers[1])
    generator, discriminator = states[3]["lr_schedulers"]
    assert (generator["last_epoch"], discriminator["last_epoch"]) == (4, 2)
    assert generator["_last_lr"][0] == pytest.approx(0)
    assert discriminator["_last_lr"][0] == pytest.approx(0)  # both end with the training


class Watched(TokenizerModule):
    """Keeps the gradients that the optimisers see."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        groups = optimizer.param_groups
        self.seen.append([p.grad.clone() for g in groups for p in g["params"]])


def watched() -> Watched:
    torch.manual_seed(1)
    tokenizer = VAE3D(backbone=TINY, latent_channels=2)
    with torch.no_grad():
        tokenizer.encoder.layers[-1].conv.bias[2:] = -30.0  # no noise
    return Watched(tokenizer, OptimizerConfig(lr=1e-3), adversarial=SMALL)


def test_gradients_of_both_are_clipped(tmp_path: Path) -> None:
    trained = watched()
    fit(trained, tmp_path, gradient_clip_val=1e-2, max_steps=2)
    norms = [
        torch.cat([x.flatten() for x in gradients]).norm().item() for gradients in trained.seen
    ]
    assert norms == pytest.approx([1e-2] * 4, rel=1e-3)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    once, twice = watched(), watched()
    fit(once, tmp_path, max_steps=1, batch_size=4)
    fit(twice, tmp_path, max_steps=1, batch_size=2, accumulate_grad_batches=2)
    assert len(once.seen) == len(twice.seen) == 2
    for a, b in zip(once.seen, twice.seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_averaging_keeps_the_discriminator_that_trains(tmp_path: Path) -> None:
    trained = module(SMALL)
    fit(trained, tmp_path, callbacks=[EMAWeightAveraging(decay=0.5, use_buffers=False)])
    states = [read(tmp_path / f"{step}.ckpt") for step in (1, 2, 3, 4)]
    key = "tokenizer.encoder.layers.0.conv.weight"
    average = states[0]["current_model_state"][key]
    for state in states[1:]:
        average = 0.5 * average + 0.5 * state["current_model_state"][key]
    torch.testing.assert_close(states[3]["state_dict"][key], average)
    loaded = load_tokenizer(tmp_path / "4.ckpt")
    torch.testing.assert_close(loaded.state_dict()[key.removeprefix("tokenizer.")], average)
    moments = states[3]["optimizer_states"][1]["state"]
    key = "adversary.discriminators.0.layers.0.weight"
    shapes = {tuple(m["exp_avg"].shape) for m in moments.values()}
    assert tuple(states[3]["current_model_state"][key].shape) in shapes
    assert not torch.equal(states[3]["current_model_state"][key], states[3]["state_dict"][key])


def test_without_a_discriminator_the_trainer_optimises(tmp_path: Path) -> None:
    trained = module(None)
    fit(trained, tmp_path, max_steps=1)
    assert trained.automatic_optimization
    assert len(read(tmp_path / "1.ckpt")["optimizer_states"]) == 1


def test_a_checkpoint_with_another_discriminator_is_refused(tmp_path: Path) -> None:
    fit(module(SMALL), tmp_path, max_steps=1)
    checkpoint = tmp_path / "1.ckpt"
    for other in (None, dataclasses.replace(SMALL, channels=32)):
        with pytest.raises(UserError, match=r"model\.adversarial must not change"):
            fit(module(other), tmp_path, max_steps=2, start=checkpoint)
    fit(module(copy.copy(SMALL)), tmp_path, max_steps=2, start=checkpoint)


def test_a_discriminator_that_would_never_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would start at step 4"):
        fit(module(dataclasses.replace(SMALL, start_step=4)), tmp_path)
    with pytest.raises(UserError, match=r"adversarial\.r1_every must be at least 1"):
        Adversarial(r1_every=0)
