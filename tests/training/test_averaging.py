"""Averages of weights: Lightning's numbers and checkpoints, at the cost of the trained parameters alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks import EMAWeightAveraging as LightningEMA
from torch import Tensor, nn

from arvid.training.averaging import EMAWeightAveraging


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.net = nn.Linear(4, 1)
        self.register_buffer("offset", torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.offset += 1
        loss: Tensor = (self.net(self.frozen(batch)) - 1).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class SaveAtEnd(Checkpoint):
    """Saves before `on_train_end`, at which the averages become the weights."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.max_steps}.ckpt")


def fit(
    folder: Path, callback: Any, *, steps: int = 4, start: Path | None = None
) -> dict[str, Any]:
    torch.manual_seed(0)
    trainer = Trainer(
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[callback, SaveAtEnd()],
        default_root_dir=folder,
    )
    batches = torch.randn(8, 5, 4)
    batches = batches[0 if start is None else 2 :]
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=start)
    return dict(torch.load(folder / f"{steps}.ckpt", weights_only=True))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_buffers": False},
    {"update_every_n_steps": 2},
    {"update_starting_at_step": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_averages_are_those_of_lightning(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = fit(tmp_path, LightningEMA(decay=0.5, **options))
    ours = fit(tmp_path, EMAWeightAveraging(decay=0.5, **options))
    assert ours["averaging_state"] == theirs["averaging_state"]
    assert ours["callbacks"]["EMAWeightAveraging"] == theirs["callbacks"]["EMAWeightAveraging"]
    for part in ("state_dict", "current_model_state"):
        for name, value in theirs[part].items():
            torch.testing.assert_close(ours[part][name], value, msg=f"{part} {name}")
    assert not torch.equal(
        ours["state_dict"]["net.weight"], ours["current_model_state"]["net.weight"]
    )


def test_a_run_of_lightnings_averages_goes_on(tmp_path: Path) -> None:
    straight = fit(tmp_path, LightningEMA(decay=0.5))
    fit(tmp_path, LightningEMA(decay=0.5), steps=2)
    resumed = fit(tmp_path, EMAWeightAveraging(decay=0.5), start=tmp_path / "2.ckpt")
    assert resumed["averaging_state"] == straight["averaging_state"]
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(resumed[part], straight[part])


def test_frozen_parameters_are_not_averaged(tmp_path: Path) -> None:
    callback = EMAWeightAveraging(use_buffers=False)
    fit(tmp_path, callback)
    assert [tuple(weight.shape) for _, weight in callback._averaged] == [(1, 4), (1,)]


class Validated(Module):
    """Keeps the weight that each validation sees, and that which was trained then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.trained: list[Tensor] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.trained.append(self.net.weight.detach().clone())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(self.net.weight.detach().clone())


def test_until_averages_begin_they_are_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Validated()
    trainer = Trainer(
        max_steps=4,
        val_check_interval=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[EMAWeightAveraging(decay=0.5, update_starting_at_step=1000), SaveAtEnd()],
        default_root_dir=tmp_path,
    )
    batches: Any = torch.randn(8, 5, 4)
    data = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, data, data)
    assert len(module.seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(module.seen, module.trained, strict=True))
    state = torch.load(tmp_path / "4.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["net.weight"], module.trained[-1])
    assert torch.equal(module.net.weight, module.trained[-1])
    assert "ended before any weights were averaged" in caplog.text
