"""Checkpoints of a run: the newest are kept, each is whole and finite, and a resumed run does not save what it has."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from arvid.training.averaging import EMAWeightAveraging
from arvid.training.saving import SaveLast, put_in_place, remove, saved, saved_before


class Module(LightningModule):
    """`broken` maps a step to what is done to the module and its optimiser before the step ends."""

    def __init__(self, **broken: Callable[[Module], None]) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.broken = {int(step.removeprefix("step")): act for step, act in broken.items()}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.broken.get(self.global_step + 1, lambda module: None)(self)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


def fit(
    folder: Path,
    module: Module,
    saver: SaveLast,
    *,
    steps: int,
    callbacks: Any = (),
    start: Path | None = None,
    accumulate: int = 1,
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, saver],
        default_root_dir=folder,
    )
    batches: Any = torch.randn(100, 8, 4)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=start)


def steps_of(folder: Path) -> list[int]:
    """Of the checkpoints that lie there: the steps that their training has done."""
    return [torch.load(path, weights_only=True)["global_step"] for path in saved(folder)]


def test_the_newest_are_kept_and_last_is_one_of_them(tmp_path: Path) -> None:
    fit(tmp_path, Module(), SaveLast(2, keep=3), steps=9)
    folder = tmp_path / "checkpoints"
    names = [f"step-000000{step}.ckpt" for step in (6, 8, 9)]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", *names]
    assert steps_of(tmp_path) == [6, 8, 9]
    assert os.path.samefile(folder / "last.ckpt", folder / names[-1])
    assert saved_before(tmp_path, 8) == folder / names[0]
    assert saved_before(tmp_path, 6) is None


def test_without_hard_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not on this disk")

    monkeypatch.setattr(os, "link", refuse)
    fit(tmp_path, Module(), SaveLast(2), steps=4)
    folder = tmp_path / "checkpoints"
    assert (folder / "last.ckpt").read_bytes() == (folder / "step-0000004.ckpt").read_bytes()
    assert len(list(folder.iterdir())) == 3


def ruin_weights(module: Module) -> None:
    with torch.no_grad():
        module.net.weight[0, 1] = math.inf


def ruin_moments(module: Module) -> None:
    module.trainer.optimizers[0].state[module.net.bias]["exp_avg_sq"].fill_(math.nan)


@pytest.mark.parametrize(
    ("ruin", "name"),
    [(ruin_weights, "net.weight"), (ruin_moments, "optimizer_states.0.state.1.exp_avg_sq")],
)
def test_what_is_not_finite_takes_no_good_ones_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ruin: Callable[[Module], None], name: str
) -> None:
    fit(tmp_path, Module(step3=ruin), SaveLast(1, keep=2), steps=6)
    assert steps_of(tmp_path) == [1, 2]
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert (
        f"The state after step 3 is not saved: state_dict.{name}".replace(
            "state_dict.optimizer", "optimizer"
        )
        in caplog.text
    )


def test_averages_have_to_be_finite_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    averages = EMAWeightAveraging()

    def ruin(module: Module) -> None:
        averages._averaged[0][0].data.fill_(math.nan)

    fit(tmp_path, Module(step3=ruin), SaveLast(2), steps=4, callbacks=[averages])
    assert steps_of(tmp_path) == [2]
    assert "state_dict.net.weight is not finite" in caplog.text


def test_in_doubt_only_the_end_is_saved(tmp_path: Path) -> None:
    fit(tmp_path, Module(), SaveLast(2, in_doubt=lambda: True), steps=6)
    assert steps_of(tmp_path) == [6]


def test_a_run_that_goes_on_from_an_earlier_checkpoint_keeps_its_own(tmp_path: Path) -> None:
    fit(tmp_path, Module(), SaveLast(1, keep=4), steps=8)
    assert steps_of(tmp_path) == [5, 6, 7, 8]
    start = tmp_path / "checkpoints/step-0000005.ckpt"
    fit(tmp_path, Module(), SaveLast(1, keep=2), steps=7, start=start)
    assert steps_of(tmp_path) == [6, 7]
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 7


def test_a_resumed_run_saves_no_step_that_is_half_done(tmp_path: Path) -> None:
    fit(tmp_path, Module(), SaveLast(2), steps=2, accumulate=2)
    start = tmp_path / "checkpoints/last.ckpt"
    before = start.stat().st_mtime_ns

    class Watch(SaveLast):
        def save(self, trainer: Trainer) -> None:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            assert batches == 2 * trainer.global_step
            super().save(trainer)

    fit(tmp_path, Module(), Watch(2), steps=4, accumulate=2, start=start)
    assert steps_of(tmp_path) == [2, 4]
    assert (start.parent / "step-0000002.ckpt").stat().st_mtime_ns == before


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints/.step-0000500-x1y2.ckpt"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    fit(tmp_path, Module(), SaveLast(2), steps=2)
    assert not leftover.exists()


class Killed(BaseException):
    """In place of a signal that cannot be handled."""


def kill(folder: Path) -> NoReturn:
    """In place of `shutil.rmtree`: removes one file."""
    next(folder.iterdir()).unlink()
    raise Killed


def folder_with(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    for name in ("a", "b"):
        (path / name).write_text(content)
    return path


def test_a_folder_that_is_removed_in_part_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = folder_with(tmp_path / "checkpoints/step-0000005.ckpt", "old")
    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(Killed):
        remove(checkpoint)
    monkeypatch.undo()
    assert saved(tmp_path) == []
    fit(tmp_path, Module(), SaveLast(2), steps=2)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [
        "last.ckpt",
        "step-0000002.ckpt",
    ]


def test_a_folder_takes_the_place_of_an_older_one_before_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = folder_with(tmp_path / "step-0000005.ckpt", "old")
    new = folder_with(tmp_path / ".step-0000005.ckpt", "new")
    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(Killed):
        put_in_place(new, checkpoint)
    assert [path.read_text() for path in checkpoint.iterdir()] == ["new", "new"]
    assert not new.exists()
