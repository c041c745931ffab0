"""Checkpoints of a sharded training are written while it goes on: one process, whose writes are slow or fail."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from arvid.errors import UserError
from arvid.training import sharded_saving
from arvid.training.checkpoint_io import (
    CONTENT,
    SHARDS,
    read_checkpoint,
    read_content,
    save_checkpoint,
    verifying,
)
from arvid.training.finite import SkipNonfinite
from arvid.training.leaving import LeaveOnSignal
from arvid.training.saving import SaveLast, saved
from arvid.training.sharding import ShardedStrategy, shard
from arvid.training.shards import local


class Module(LightningModule):
    """`seen` has the weights before each step; `acts` maps a number of finished steps to what happens in the next."""

    def __init__(self, **acts: Callable[[], Any]) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.factor = 1.0
        self.acts = {int(step.removeprefix("after")): act for step, act in acts.items()}
        self.seen: dict[int, Tensor] = {}

    def configure_model(self) -> None:
        assert self._device_mesh is not None
        if not isinstance(self, FSDPModule):
            shard(self, self._device_mesh, whole=nn.Identity(), method="losses")

    def losses(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.net(batch).square().mean() * self.factor
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen[self.global_step] = local(self.net.weight.detach()).clone()
        self.acts.get(self.global_step, lambda: None)()
        return self.losses(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


class Writes:
    """In place of `write_tensors`: each waits for `go`. The disk is full in those whose numbers are in `failing`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.failing: set[int] = set()
        self.count = 0
        self.busy = False
        self.write = sharded_saving.write_tensors

    def __call__(self, *arguments: Any) -> None:
        self.count += 1
        assert not self.busy, "two writes at a time"
        self.busy = True
        assert self.go.wait(60)
        self.busy = False
        if self.count in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.write(*arguments)

    def go_soon(self) -> None:
        threading.Timer(0.2, self.go.set).start()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Writes]:
    """The writes of a training with one process, and the place where that process listens."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    found = Writes()
    monkeypatch.setattr(sharded_saving, "write_tensors", found)
    yield found
    found.failing.add(found.count)  # a write that still waits must not use the group
    found.go.set()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fit(
    folder: Path,
    module: Module,
    *,
    every: int,
    steps: int,
    callbacks: Any = (),
    replicas: int = 1,
) -> None:
    saver = SaveLast(every, keep=9)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        strategy=ShardedStrategy(replicas),
        max_steps=steps,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, saver, LeaveOnSignal(saver)],
        default_root_dir=folder,
    )
    batches: Any = torch.randn(100, 8, 4)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


def last(folder: Path) -> str:
    return (folder / "checkpoints/last.ckpt").resolve().stem


def steps_of(folder: Path) -> list[int]:
    """Of the checkpoints that are complete. There must be no other folder, and all must be readable."""
    found = saved(folder)
    assert len(list((folder / "checkpoints").iterdir())) == len(found) + bool(found)
    return [read_checkpoint(path)["global_step"] for path in found]


def test_training_goes_on_and_the_state_is_that_of_the_save(tmp_path: Path, writes: Writes) -> None:
    between: list[str] = []

    def look() -> None:
        while not writes.busy:
            time.sleep(0.01)
        between.extend(path.name for path in (tmp_path / "checkpoints").iterdir())
        writes.go.set()

    module = Module(after6=look)
    fit(tmp_path, module, every=4, steps=9)
    assert between == [".step-0000004.ckpt"]
    assert steps_of(tmp_path) == [4, 8, 9]
    assert last(tmp_path) == "step-0000009"
    weight = read_checkpoint(saved(tmp_path)[0])["state_dict"]["net.weight"]
    assert torch.equal(weight, module.seen[4])
    assert not torch.equal(weight, module.seen[5])


def test_the_next_save_waits_for_the_write_before(tmp_path: Path, writes: Writes) -> None:
    module = Module(after3=writes.go_soon)
    fit(tmp_path, module, every=2, steps=5)
    assert steps_of(tmp_path) == [2, 4, 5]


def test_after_a_full_disk_the_next_checkpoint_is_tried(
    tmp_path: Path, writes: Writes, caplog: pytest.LogCaptureFixture
) -> None:
    writes.go.set()
    writes.failing = {2}
    fit(tmp_path, Module(), every=2, steps=7)
    assert steps_of(tmp_path) == [2, 6, 7]
    assert (
        "step-0000004.ckpt could not be written: [Errno 28] No space left on device." in caplog.text
    )


@pytest.mark.parametrize(("steps", "failing", "reached"), [(9, {2, 3}, 5), (4, {2}, 3)])
def test_a_full_disk_ends_the_training(
    tmp_path: Path, writes: Writes, steps: int, failing: set[int], reached: int
) -> None:
    """At the second failure in a row, or after the last step. The checkpoint before stays."""
    writes.go.set()
    writes.failing = failing
    module = Module()
    with pytest.raises(UserError, match=r"could not be written: .* No space left on device"):
        fit(tmp_path, module, every=2, steps=steps)
    assert max(module.seen) == reached
    assert steps_of(tmp_path) == [2]
    assert last(tmp_path) == "step-0000002"


def fail() -> None:
    raise RuntimeError("out of memory")


def test_an_exception_waits_for_the_write(tmp_path: Path, writes: Writes) -> None:
    module = Module(after2=writes.go_soon, after3=fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, module, every=2, steps=9)
    assert steps_of(tmp_path) == [2]


def test_a_training_that_cannot_begin_says_why(tmp_path: Path, writes: Writes) -> None:
    with pytest.raises(UserError, match="1 processes cannot hold 2 replicas"):
        fit(tmp_path, Module(), every=2, steps=9, replicas=2)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_twice() -> None:
    terminate()
    threading.Timer(0.3, terminate).start()


def test_a_signal_waits_for_the_write(tmp_path: Path, writes: Writes) -> None:
    writes.go_soon()
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, Module(after3=terminate), every=2, steps=9)
    assert left.value.code == 143
    assert steps_of(tmp_path) == [2, 4]
    assert last(tmp_path) == "step-0000004"


def test_a_second_signal_does_not_wait(tmp_path: Path, writes: Writes) -> None:
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, Module(after2=terminate_twice), every=2, steps=9)
    assert left.value.code == 143
    assert writes.busy
    assert not saved(tmp_path)


@pytest.mark.parametrize(("failing", "steps"), [(set(), [2, 4]), ({2}, [2])])
def test_a_broken_run_goes_back_although_a_later_state_is_being_written(
    tmp_path: Path, writes: Writes, failing: set[int], steps: list[int]
) -> None:
    """Also if the disk is full by then."""
    writes.failing = failing

    def ruin() -> None:
        module.factor = math.nan
        writes.go_soon()

    def hold_the_second() -> None:
        while not (tmp_path / "checkpoints/last.ckpt").exists():
            time.sleep(0.01)
        writes.go.clear()

    writes.go.set()
    module = Module(after3=hold_the_second, after4=ruin)
    with pytest.raises(FloatingPointError, match=r"last.ckpt is now that one"):
        fit(tmp_path, module, every=2, steps=9, callbacks=[SkipNonfinite(patience=2)])
    assert steps_of(tmp_path) == steps
    assert last(tmp_path) == "step-0000002"


def without_list(content: dict[str, Any]) -> None:
    del content[SHARDS]


def with_weight(weight: Tensor) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"]["net.weight"] = weight

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_list, "is damaged: checkpoint.pt does not list its files"),
        (
            with_weight(torch.empty(9, 9, device="meta")),
            r"cannot be read: Size mismatch between saved torch.Size\(\[1, 4\]\)",
        ),
        (
            with_weight(torch.empty(10**15, device="meta")),
            r"state_dict.net.weight of shape \(10{15},\) does not fit into memory",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read_says_why(
    tmp_path: Path, writes: Writes, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    writes.go.set()
    fit(tmp_path, Module(), every=2, steps=2)
    checkpoint = saved(tmp_path)[0]
    content = read_content(checkpoint)
    change(content)
    save_checkpoint(content, checkpoint / CONTENT)
    with pytest.raises(UserError, match=reason), verifying(checkpoint):
        read_checkpoint(checkpoint)
