"""Sharded training of generators (`--trainer.strategy sharded`), by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each process holds a part of every weight, gradient, optimizer moment and EMA weight. The weights of a transformer block
or token head are gathered before it is computed and freed afterwards. Losses equal those of one process up to rounding.
A checkpoint is a folder into which all processes write while the training goes on. A run can resume with any number of
processes, sharded or not.
"""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from arvid.contracts import TokenHead, UserError
from arvid.ranges import at_least
from arvid.training.checkpoint_io import read_checkpoint, read_content, verifying
from arvid.training.sharded_files import read_tensors, replace_tensors
from arvid.training.sharded_saving import ShardedWriter
from arvid.training.shards import part_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

HEAD_METHODS = ("loss", "sample", "sample_with_confidence")
"""Methods of token heads that use their weights."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with arvid's checkpoints.

    Args:
        replicas: number of copies of the network. It must divide the number of processes. With one copy per node
            (HSDP), weights are gathered within a node, and only averaged gradients travel between nodes.
    """

    def __init__(self, replicas: int = 1) -> None:
        at_least(1).require("ShardedStrategy.", replicas=replicas)
        super().__init__(tensor_parallel_size=1)
        self.replicas = replicas
        self._writer: ShardedWriter | None = None

    def setup_environment(self) -> None:
        """Raises UserError if the replicas do not divide the processes."""
        num = self.num_processes * self.num_nodes
        if num % self.replicas:
            raise UserError(
                f"{num} processes cannot hold {self.replicas} replicas: set replicas to a divisor."
            )
        self._data_parallel_size = num
        super().setup_environment()
        kind, shape = self.root_device.type, (self.replicas, num // self.replicas)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicas", "shards"))
        self._device_mesh = mesh if self.replicas > 1 else mesh["shards"]
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh
        self._writer = ShardedWriter(self.root_device, self._timeout)

    def setup(self, trainer: Trainer) -> None:
        """Raises UserError for a module that cannot be sharded."""
        if not is_overridden("configure_model", self.lightning_module):
            raise UserError(
                f"{type(self.lightning_module).__name__} cannot be sharded: only generators can. "
                "Use --trainer.strategy ddp."
            )
        super().setup(trainer)

    # A checkpoint has the same content as with other strategies, but each process saves and loads its own parts.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, in which each process has its own parts."""
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the module's state from a checkpoint of `load_checkpoint`."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, in which each process has its own parts."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return plain.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states from a checkpoint of `load_checkpoint`."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint as a folder, completely or not at all. All processes must call this.

        `storage_options`: None, or a function that the first process calls when the checkpoint is complete. With a
        function, this returns before that (see `ShardedWriter.save`).
        """
        path = Path(self.broadcast(filepath))
        assert self._writer is not None
        self._writer.save(checkpoint, path, storage_options)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is written. Raises UserError if that failed."""
        if self._writer is not None:  # it is None if the training failed before it began
            self._writer.wait()

    def on_exception(self, exception: BaseException) -> None:
        """Wait until the last checkpoint is written. A second signal (SystemExit) does not wait."""
        if not isinstance(exception, SystemExit):
            with suppress(UserError):  # it is logged already, and must not hide the exception
                self.wait_for_checkpoint()

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Each process gets its own parts of the tensors. All processes must call this.

        Raises UserError if the checkpoint is damaged.
        """
        path = Path(self.broadcast(checkpoint_path))
        with verifying(path):
            return self._read_folder(path) if path.is_dir() else self._read_file(path)

    def _read_folder(self, path: Path) -> dict[str, Any]:
        parameter_of = self._parameter_of()
        targets: dict[str, Tensor] = {}

        def allocate(name: str, empty: Tensor) -> Tensor:
            parameter = parameter_of(name, empty)
            if parameter is None:
                targets[name] = torch.empty_like(empty, device="cpu")
            else:
                targets[name] = torch.zeros_like(parameter, dtype=empty.dtype)
            return targets[name]

        checkpoint: dict[str, Any] = replace_tensors(read_content(path), allocate)
        read_tensors(targets, path, alone=False)
        return checkpoint

    def _read_file(self, path: Path) -> dict[str, Any]:
        parameter_of = self._parameter_of()

        def divide(name: str, tensor: Tensor) -> Tensor:
            parameter = parameter_of(name, tensor)
            return tensor if parameter is None else part_of(tensor, parameter)

        divided: dict[str, Any] = replace_tensors(read_checkpoint(path), divide)
        return divided

    def _parameter_of(self) -> Callable[[str, Tensor], Tensor | None]:
        """A function (name, tensor of a checkpoint) -> the parameter that the tensor belongs to.

        The tensor is a weight, EMA weight or moment, and must be sharded as the parameter is. The function returns None
        for tensors that are not sharded. Names are paths such as `state_dict.NAME` and
        `optimizer_states.0.parts.1.state.INDEX.exp_avg`.
        """
        module = self.lightning_module
        assert module is not None
        weights = dict(module.named_parameters())
        groups = [_parts(optimizer) for optimizer in self.optimizers]

        def parameter_of(name: str, tensor: Tensor) -> Tensor | None:
            part, _, rest = name.partition(".")
            found: Tensor | None = None
            if part in ("state_dict", "current_model_state"):
                found = weights.get(rest)
            elif part == "optimizer_states":
                keys = rest.split(".")
                part_index = int(keys[2]) if keys[1] == "parts" else 0
                index = int(keys[-2])
                parameters = groups[int(keys[0])][part_index] if groups else []
                found = parameters[index] if index < len(parameters) else None
            fits = isinstance(found, DTensor) and found.shape == tensor.shape
            return found.detach() if fits and found is not None else None

        return parameter_of


def _parts(optimizer: Optimizer) -> list[list[Tensor]]:
    """The parameters of an optimizer, or of each part of `MuonAdamW`, in the order of its state."""
    return [
        [p for group in part.param_groups for p in group["params"]]
        for part in getattr(optimizer, "parts", (optimizer,))
    ]


def shard(module: nn.Module, mesh: DeviceMesh, *, whole: nn.Module, method: str) -> None:
    """Shard a module. Each block of an `nn.ModuleList` and each token head is a unit; all the rest is one more unit.

    Args:
        module: the root, such as the LightningModule of a training.
        mesh: the processes.
        whole: a submodule without trained parameters. Each process keeps all of it.
        method: name of the module's method that computes the losses.
    """
    ignored = set(whole.parameters())
    for part in units(module, skipped=whole):
        fully_shard(part, mesh=mesh)
        for name in HEAD_METHODS:
            if isinstance(part, TokenHead) and hasattr(part, name):
                register_fsdp_forward_method(part, name)
    # Gathered weights are freed after the forward pass. Otherwise they would be outdated when EMA weights come in.
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    register_fsdp_forward_method(module, method)
    # The losses may be views of one tensor. Nothing writes into them, so FSDP2's warning about views does not apply.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)


def units(module: nn.Module, skipped: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network whose weights are gathered together: blocks of `nn.ModuleList`s, and token heads.

    `skipped`: a submodule that stays whole.
    """
    for child in module.children():
        if child is skipped:
            continue
        if isinstance(child, TokenHead):
            yield child
        elif isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from units(child, skipped)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside the block, a sharded module is a plain module with all weights on every process, for sampling.

    All processes must enter and leave the block. A module that is not sharded stays as it is.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    kept = [(part, type(part), _take_hooks(part)) for part in parts]
    for part, cls, _ in kept:
        part.__class__ = cls.__mro__[2]  # FSDP2 made a subclass of FSDPModule and of this class
    try:
        yield
    finally:
        for part, cls, taken in kept:
            part.__class__ = cls
            vars(part).update(taken)
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _take_hooks(part: nn.Module) -> dict[str, Any]:
    """Remove and return FSDP2's hooks, and the methods that `register_fsdp_forward_method` has set on the object.

    Only the first process samples. If hooks ran then, its next backward pass would prefetch weights in another order
    than the other processes do.
    """
    own = vars(part)
    found = [n for n, v in own.items() if inspect.ismethod(v) and v.__self__ is part]
    taken = {name: own.pop(name) for name in found}
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        taken[name] = own[name]
        own[name] = OrderedDict()
    return taken


StrategyRegistry.register(
    "sharded", ShardedStrategy, description="FSDP2: weights, gradients and moments are divided"
)
