"""Logs learning rate, waiting time for data, peak memory and FLOP utilisation (MFU) of a training."""

from __future__ import annotations

import copy
import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from arvid.contracts import Condition
from arvid.flops import flop_counter
from arvid.nn.attend import kernels_of_gpus
from arvid.nn.draws import drawing_by
from arvid.training.generator_module import GeneratorModule
from arvid.training.guards import warn

GIB = 2**30


class Health(Callback):
    """Logs these values every `trainer.log_every_n_steps` steps:

    | value | meaning |
    |---|---|
    | `learning_rate` | of the first group of parameters |
    | `data_seconds` | time that the step waited for its clips and their copy to the device |
    | `peak_memory_gib` | largest memory so far: of tensors on a GPU, or of the process on a CPU |
    | `flop_utilisation` | generators on GPUs with a known peak rate: FLOPs of the network / (time · peak rate) |

    Measuring never waits for the GPU. FLOPs are counted once, on fake tensors. Recomputed activations do not count.
    """

    def __init__(self) -> None:
        self._ended = 0.0
        self._waited = 0.0
        self._logged: tuple[int, float] | None = None  # step and time of the last logged step
        self._clip_share: float | None = None  # seconds that one clip takes at the peak rate

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended, self._logged = time.monotonic(), None  # validation is not training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.monotonic() - self._ended
        if self._clip_share is None:
            self._clip_share = seconds_at_peak(pl_module, batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.monotonic()
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if every and trainer.global_step % every == 0:
            pl_module.log_dict(self._values(trainer, pl_module, batch), rank_zero_only=True)
        self._waited = 0.0

    def _values(self, trainer: Trainer, module: LightningModule, batch: Any) -> dict[str, float]:
        values = {
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "data_seconds": self._waited,
            "peak_memory_gib": peak_memory(module.device) / GIB,
        }
        step, before = trainer.global_step, self._logged
        self._logged = (step, self._ended)
        # A mean over the steps since the last log: the GPU may be several steps behind the host.
        if self._clip_share and before is not None and step > before[0]:
            clips = (step - before[0]) * trainer.accumulate_grad_batches * len(batch["tokens"])
            values["flop_utilisation"] = clips * self._clip_share / (self._ended - before[1])
        return values


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in bytes: of tensors on a GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def seconds_at_peak(module: LightningModule, batch: Any) -> float:
    """Seconds that a clip's forward and backward pass take at the device's peak rate; 0 if the rate is not known."""
    if module.device.type != "cuda" or not isinstance(module, GeneratorModule):
        return 0.0
    half = str(module.trainer.precision).startswith(("bf16", "16"))
    peak = get_available_flops(module.device, torch.bfloat16 if half else torch.float32)
    if not peak:
        return 0.0
    try:
        return flops_of_batch(module, batch) / len(batch["tokens"]) / peak
    except Exception as error:  # a value of the log must not stop a training
        warn(f"flop_utilisation is not logged: the network's FLOPs cannot be counted ({error}).")
        return 0.0


def flops_of_batch(module: GeneratorModule, batch: dict[str, Any]) -> float:
    """FLOPs of a batch's forward and backward pass, counted on a copy of the network on fake tensors."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(x: Tensor | None) -> Any:
        if x is None:
            return None
        with fakes:
            return torch.zeros(x.shape, dtype=x.dtype)

    with torch.no_grad():
        given = module.conditioner.from_batch(batch)
    condition = Condition(
        text=fake(given.text),
        text_mask=fake(given.text_mask),
        values={name: fake(value) for name, value in given.values.items()},
    )
    network = _copied(module.paradigm, fake)
    with (
        fakes,
        drawing_by(_draw_unnoticed),
        kernels_of_gpus(),
        torch.enable_grad(),
        flop_counter() as flops,
    ):
        # The method of the class, because `loss` of the object may be compiled.
        losses = type(network).loss(network, fake(batch["tokens"]), condition)
        losses["loss"].backward()
    return float(flops.get_total_flops())


def _copied(network: nn.Module, fake: Any) -> Any:
    """A copy whose parameters and buffers are fake. It takes no memory."""
    copies: dict[int, Any] = {}
    for parameter in network.parameters():
        copies[id(parameter)] = nn.Parameter(fake(parameter), parameter.requires_grad)
    for buffer in network.buffers():
        copies[id(buffer)] = fake(buffer)
    return copy.deepcopy(network, copies)


def _draw_unnoticed(sample: Any) -> Any:
    """Draw a random number that decides a shape, on real tensors. The state of the generators does not change."""
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]):
        return sample()
