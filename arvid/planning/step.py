"""Costs of one training step, on fake tensors: FLOPs, tensors saved for the backward pass, and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import finalize

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arvid.flops import flop_counter

Losses = Callable[[], Sequence[Tensor]]
"""Computes the losses of a step, one for each backward pass."""


@dataclass(frozen=True)
class StepCost:
    """Costs of a forward and backward pass."""

    flops: float
    saved: int
    """Bytes of the tensors that are saved for the backward pass, without parameters."""
    peak: int
    """Peak bytes of saved and temporary tensors, without parameters and their gradients."""


def measure_step(module: nn.Module, losses: Losses) -> StepCost:
    """The costs of `losses()` and of the backward passes, on fake or real tensors.

    Gradients of parameters are freed as soon as they are computed.
    """
    parameters = list(module.parameters())
    saved, counter = SavedTensors(parameters), flop_counter()
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with _freed_gradients(parameters), counter, LiveMemory(parameters) as live:
        with saved.recording():
            found = losses()
        for loss in found:
            loss.backward()
    return StepCost(float(counter.get_total_flops()), saved.num_bytes, live.peak)


class _NoModules:
    """Replaces the counter's tracker of modules. Its hooks keep tensors alive that checkpointing would free."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class SavedTensors:
    """Sizes of the storages that autograd saves for the backward pass. Each storage counts once, parameters do not."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._own = {_key(p.untyped_storage()) for p in parameters}
        # Storages are kept alive: a new one could get the key of a freed one.
        self._found: dict[int, UntypedStorage] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what the block saves."""
        with saved_tensors_hooks(self._record, lambda tensor: tensor):
            yield
        self._num_bytes = sum(storage.nbytes() for storage in self._found.values())
        self._found.clear()

    def _record(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _key(storage) not in self._own:
            self._found[_key(storage)] = storage
        return tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all storages that were saved."""
        return self._num_bytes


class LiveMemory(TorchDispatchMode):
    """Peak bytes of the storages that are made inside the block and alive at the same time."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {_key(p.untyped_storage()) for p in parameters}
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: UntypedStorage) -> None:
        key = _key(storage)
        if key in self._known:
            return
        self._known.add(key)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._live -= num_bytes


def _key(storage: UntypedStorage) -> int:
    return int(storage._cdata)


@contextmanager
def _freed_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    def free(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(free) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
