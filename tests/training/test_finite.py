"""Steps that are not finite: both optimisers skip them whole, on all processes, and many in a row end the training."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from arvid.training.finite import SkipNonfinite
from arvid.training.optimizer import OptimizerConfig, build_optimizer
from arvid.training.saving import SaveLast
from arvid.training.step import one_or_nan

ADAMW = OptimizerConfig(lr=0.01, warmup_steps=0, schedule="constant")
MUON = OptimizerConfig(lr=0.01, warmup_steps=0, schedule="constant", muon=True)
CONFIGS = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


class Module(LightningModule):
    """A network whose loss is not finite at some steps, and its gradient at others."""

    def __init__(
        self, config: OptimizerConfig = ADAMW, *, loss: Any = (), gradient: Any = ()
    ) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.config, self.bad_losses, self.bad_gradients = config, loss, gradient

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = batch
        for layer in self.net:
            x = layer(x)
        loss = x.square().mean()
        if self.global_step in self.bad_gradients:
            loss.register_hook(lambda gradient: gradient * math.inf)
        parts = {"loss": loss, "part": loss.detach()}
        if self.global_step in self.bad_losses:
            parts["part"] = torch.tensor(math.nan)
        self.log_dict({f"train_{name}": value for name, value in parts.items()})
        return loss * one_or_nan(parts)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.config, max_steps=100, fused=True)


class OnDevice(Module):
    """Lets the optimiser skip as on a GPU, where no one else knows."""

    def configure_optimizers(self) -> Any:
        built = super().configure_optimizers()
        built["optimizer"].takes_found_inf = True
        return built


def fit(
    module: LightningModule,
    folder: Path,
    steps: int,
    *,
    guard: SkipNonfinite | None = None,
    start: Path | None = None,
    **options: Any,
) -> Trainer:
    guard = guard or SkipNonfinite()
    trainer = Trainer(
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard, SaveLast(2, in_doubt=guard.in_doubt)],
        default_root_dir=folder,
        **{"accelerator": "cpu", **options},
    )
    batches: Any = torch.randn(100, 8, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=start)
    return trainer


def tensors(value: Any) -> list[Tensor]:
    """Of an optimiser's state, in order."""
    if isinstance(value, Tensor):
        return [value.clone()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for item in items for found in tensors(item)]


@CONFIGS
@pytest.mark.parametrize("kind", [Module, OnDevice])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, config: OptimizerConfig, kind: type[Module], what: str
) -> None:
    torch.manual_seed(0)
    module = kind(config, **{what: (3,)})
    seen: list[list[Tensor]] = []

    class Watch(SkipNonfinite):
        def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_end(trainer, *args, **kwargs)
            state = trainer.optimizers[0].state_dict()
            seen.append([p.detach().clone() for p in module.parameters()] + tensors(state))

    trainer = fit(module, tmp_path, 6, guard=Watch())
    assert trainer.callback_metrics["skipped_steps"] == 1
    assert all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen[3][:4], seen[4][:4], strict=True))


@CONFIGS
def test_skipping_on_the_device_changes_no_number(tmp_path: Path, config: OptimizerConfig) -> None:
    weights = []
    for kind in (Module, OnDevice):
        torch.manual_seed(0)
        module = kind(config, gradient=(0, 4))
        fit(module, tmp_path / kind.__name__, 8)
        weights.append([p.detach() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@CONFIGS
def test_a_gpu_skips_by_itself(tmp_path: Path, config: OptimizerConfig, precision: Any) -> None:
    module = Module(config, gradient=(1,))
    options = {"accelerator": "gpu", "precision": precision, "gradient_clip_val": 1.0}
    trainer = fit(module, tmp_path, 4, **options)
    assert trainer.optimizers[0].takes_found_inf  # type: ignore[attr-defined]
    assert trainer.callback_metrics["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in module.parameters())


def test_many_in_a_row_end_the_training_and_name_the_checkpoint(tmp_path: Path) -> None:
    module = Module(loss=range(7, 100))
    with pytest.raises(FloatingPointError) as caught:
        fit(module, tmp_path, 50, guard=SkipNonfinite(patience=5))
    message = str(caught.value)
    assert "The train loss is not finite (" in message
    assert "part nan" in message
    assert "for 5 steps in a row, from step 7 on" in message
    checkpoint = tmp_path / "checkpoints/step-0000006.ckpt"
    assert f"The last checkpoint before that step is {checkpoint}" in message
    assert "--allow_changes true" in message
    names = ["last.ckpt", *(f"step-000000{step}.ckpt" for step in (2, 4, 6))]
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == names


def test_the_checkpoint_of_weights_that_give_no_loss_is_not_the_last_one(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError
    ) as caught:  # step 6 is saved, before its weights are tried
        fit(Module(loss=range(6, 100)), tmp_path, 50, guard=SkipNonfinite(patience=5))
    assert (tmp_path / "checkpoints/step-0000006.ckpt").is_file()
    assert f"{tmp_path / 'checkpoints/step-0000004.ckpt'}; last.ckpt is now that one" in str(
        caught.value
    )
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    with pytest.raises(FloatingPointError, match="start again"):
        fit(Module(loss=range(2, 100)), tmp_path / "b", 50, guard=SkipNonfinite(patience=5))


def test_steps_skipped_now_and_then_are_counted_across_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = range(1, 100, 2)
    fit(Module(gradient=bad), tmp_path, 8, guard=SkipNonfinite(patience=2))
    last = tmp_path / "checkpoints/last.ckpt"
    again = fit(Module(gradient=bad), tmp_path, 12, guard=SkipNonfinite(patience=2), start=last)
    assert again.callback_metrics["skipped_steps"] == 6
    assert "4 of the steps up to 8 were skipped" in caplog.text
    assert "2 of the steps up to 12 were skipped" in caplog.text


def test_a_grad_scaler_may_skip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Steep(Module):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return 3000 * super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return build_optimizer(self, self.config, max_steps=100)

    trainer = fit(Steep(), tmp_path, 20, plugins=[MixedPrecision("16-mixed", "cpu")])
    assert 0 < trainer.callback_metrics["skipped_steps"] < 20
    assert "were skipped" not in caplog.text


def test_a_validation_that_is_not_finite_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Validated(Module):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val_loss", torch.tensor(math.inf))

    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[SkipNonfinite()],
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader([torch.randn(8, 4)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Validated(), data, data)
    assert logging.WARNING in [r.levelno for r in caplog.records if "loss inf" in r.getMessage()]
