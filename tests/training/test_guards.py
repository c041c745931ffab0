"""What goes wrong is seen and said: solid colours, values that are not finite, a discriminator that has won."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.training.adversarial import Adversarial, Adversary
from arvid.training.finite import SkipNonfinite
from arvid.training.guards import CollapseGuard, DiscriminatorGuard, explain_nonfinite
from arvid.training.optimizer import OptimizerConfig
from arvid.training.tokenizer_module import TokenizerModule

TINY = Backbone(
    base=4, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=0, num_groups=2
)
ADVERSARIAL = Adversarial(channels=16, num_layers=1)
Log = pytest.LogCaptureFixture


def fit(module: TokenizerModule, folder: Path, steps: int) -> None:
    video = torch.rand(3, 5, 16, 16) * 2 - 1
    data = DataLoader([{"video": video}] * steps)  # type: ignore[arg-type]
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=1,
        limit_val_batches=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[SkipNonfinite(patience=1)],
    ).fit(module, data, data)


def warnings_of(log: Log) -> list[str]:
    return [
        r.getMessage() for r in log.records if r.levelno == logging.WARNING and "arvid" in r.name
    ]


def test_a_collapsed_tokenizer_is_reported_once(tmp_path: Path, caplog: Log) -> None:
    tokenizer = MagvitFSQ(backbone=TINY, levels=(5, 5))
    module = TokenizerModule(tokenizer, OptimizerConfig(lr=1e-9))
    with torch.no_grad():
        for parameter in tokenizer.decoder.layers[-1].parameters():
            parameter.zero_()  # black
    fit(module, tmp_path, 2)
    assert warnings_of(caplog) == []  # the first validations may be like that
    fit(module, tmp_path, 4)
    (message,) = warnings_of(caplog)
    assert "one solid colour for 3 validations" in message
    assert "model.images.first_steps" in message


def test_solid_clips_and_recovered_tokenizers_are_no_collapse(caplog: Log) -> None:
    guard = CollapseGuard(patience=2)
    noise, solid = torch.randn(2, 3, 5, 8, 8), torch.ones(2, 3, 5, 8, 8)
    flashing = torch.linspace(-1, 1, 5).view(1, 1, 5, 1, 1).expand(2, 3, 5, 8, 8)
    for video, reconstruction in [
        (solid, solid),
        (solid, solid),
        (noise, solid),
        (noise, 0.1 * noise),
        (noise, solid),
    ]:
        guard.update(video, reconstruction)
        guard.end_validation()
    assert warnings_of(caplog) == []
    guard.update(noise, flashing)  # of one colour within each frame
    guard.end_validation()
    assert len(warnings_of(caplog)) == 1


def test_a_discriminator_that_has_won_is_reported_once(
    tmp_path: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def won(self: Adversary, real: Tensor, fake: Tensor) -> Tensor:
        return 0 * (real.mean() + fake.mean())

    monkeypatch.setattr(Adversary, "_classification", won)
    module = TokenizerModule(MagvitFSQ(backbone=TINY, levels=(5, 5)), adversarial=ADVERSARIAL)
    module.discriminator_guard = DiscriminatorGuard(patience=1)
    fit(module, tmp_path, 2)
    (message,) = warnings_of(caplog)
    assert "loss has been zero for 1 steps" in message
    assert "model.adversarial.start_step" in message


def test_a_discriminator_that_loses_now_and_then_has_not_won(caplog: Log) -> None:
    guard = DiscriminatorGuard(patience=50)
    for step in range(500):
        guard.update(torch.tensor(0.5 if step % 40 == 0 else 0.0), step)
    assert warnings_of(caplog) == []
    for step in range(500, 1000):
        guard.update(torch.zeros(()), step)
    assert len(warnings_of(caplog)) == 1


def test_the_first_layer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tokenizer = MagvitFSQ(backbone=TINY, levels=(5, 5))
    module = TokenizerModule(tokenizer)

    def overflow(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output * math.inf

    tokenizer.decoder.layers[1].last.register_forward_hook(overflow)
    with pytest.raises(FloatingPointError) as caught:
        fit(module, tmp_path, 1)
    message = str(caught.value)
    assert "reconstruction nan" in message
    assert "It begins in tokenizer.decoder.layers.2" in message  # which follows it
    assert "--trainer.precision 32-true" in message


def test_a_discriminator_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    module = TokenizerModule(MagvitFSQ(backbone=TINY, levels=(5, 5)), adversarial=ADVERSARIAL)
    assert module.adversary is not None
    before = [p.clone() for p in module.tokenizer.parameters()]
    with torch.no_grad():
        next(module.adversary.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="discriminator nan") as caught:
        fit(module, tmp_path, 1)
    assert "adversary.discriminators.0.layers.0.weight first" in str(caught.value)
    for parameter, old in zip(module.tokenizer.parameters(), before, strict=True):
        assert torch.equal(parameter, old)  # the step was skipped


def test_a_broken_batch_is_named() -> None:
    video = torch.tensor([math.nan])
    assert "The batch itself" in explain_nonfinite(nn.Linear(1, 1), video, lambda: None)
