"""Runs code on fake tensors of the device "cuda" and records what a GPU would do.

A launch is an operation that makes a tensor on the device. A wait is an operation for which the host waits for the
device: it reads a value, needs a shape that depends on values, or copies between device and pageable memory. A tensor
on the wrong device raises an error, as on a GPU. A value that is read gets a stand-in, so that the code continues.

A replay of a CUDA graph counts as one launch. So does attention, for which GPUs have one kernel.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from arvid.nn import cuda_graph

ROOT = Path(__file__).parents[2]
SOURCES = tuple(str(ROOT / folder) for folder in ("arvid", "paradigms", "tokenizers"))
"""Folders of arvid's code. The place of a wait is a line in one of them."""
WITH_UNKNOWN_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
SAME_MEMORY = {"_unsafe_view", "lift_fresh", "detach", "_reshape_alias"}
"""Operations without a kernel that the dispatcher does not mark as views."""


class Record:
    """Counts of one run."""

    def __init__(self) -> None:
        self.launches = 0
        self.waits: Counter[str] = Counter()
        """Number of waits, by reason and place."""
        self.capturing = False

    def launch(self, num: int = 1) -> None:
        if not self.capturing:
            self.launches += num

    def wait(self, reason: str) -> None:
        assert not self.capturing, f"{reason} at {_place()} would break the capture of a CUDA graph"
        self.waits[f"{reason} at {_place()}"] += 1


def _place() -> str:
    """The innermost line of arvid on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(SOURCES):
            return f"{Path(frame.filename).resolve().relative_to(ROOT)}:{frame.lineno}"
    return "the test"


class _Operations(TorchDispatchMode):
    """Counts operations of the forward and backward pass, and returns stand-ins for values that are read."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            if args[0].is_cuda:
                self.record.wait("a value is read")
            return _stand_in(args[0].dtype)
        if name in WITH_UNKNOWN_SHAPES and args[0].is_cuda:
            self.record.wait(f"{name} makes a tensor of unknown shape")
        self._look_for_copies(name, args, kwargs)
        out = func(*args, **kwargs)
        if not func.is_view and name not in SAME_MEMORY and _on_device(out):
            self.record.launch()
        return out

    def _look_for_copies(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name == "_to_copy":
            source, target = args[0], kwargs.get("device") or args[0].device
        elif name == "copy_":
            source, target = args[1], args[0].device
        else:
            return
        if torch.device(target).type != source.device.type:
            self.record.wait(f"a copy from {source.device.type} to {torch.device(target).type}")


def _stand_in(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.5 if dtype.is_floating_point else 1


def _on_device(out: Any) -> bool:
    tensors = out if isinstance(out, tuple | list) else (out,)
    return any(isinstance(x, Tensor) and x.is_cuda for x in tensors)


class _FakeTensors(FakeTensorMode):
    """Fake tensors that never ask for the device, not even for constants."""

    avoid_device_init = True  # type: ignore[assignment]


class _Functions(TorchFunctionMode):
    """Replaces functions that a CPU build of PyTorch runs differently from a GPU build."""

    def __init__(self, record: Record, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.record = record
        self.fakes = fakes

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("generator"), DeviceGenerator):
            generator = kwargs.pop("generator")
            out = func(*args, **kwargs)
            assert out.device.type == generator.device_type, (
                f"a generator of another device: {func}"
            )
            return out
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        is_constant = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if is_constant and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            self.record.wait("a constant is copied to the device")
            return self._moved(func(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.to and not isinstance(args[0], FakeTensor) and _is_cuda(args[1:]):
            self.record.wait("a tensor with values is copied to the device")
            return self._moved(args[0])  # a tensor that was made before fake mode began
        return func(*args, **kwargs)

    def _moved(self, x: Tensor) -> Tensor:
        with self.fakes:
            return torch.empty(x.shape, dtype=x.dtype, device="cuda")


def _is_cuda(devices: Any) -> bool:
    return any(
        isinstance(x, str | torch.device) and torch.device(x).type == "cuda" for x in devices
    )


class DeviceGenerator(torch.Generator):
    """Stand-in for a random generator of the device. A CPU build cannot make one."""

    device_type = "cuda"


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The fused kernel for any mask and dtype. (By default, fake tensors use a decomposition into matrix products.)"""
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
        bias = bias.expand(*q.shape[:2], q.shape[2], k.shape[2])
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, q.requires_grad, dropout_p, is_causal, scale=scale
    )[0]
    return out


class _Graph:
    """Replaces `torch.cuda.CUDAGraph`."""

    record: Record

    def replay(self) -> None:
        self.record.launch()


class _Stream:
    """Replaces `torch.cuda.Stream`."""

    def wait_stream(self, _: object) -> None: ...


@contextmanager
def _device_functions(record: Record) -> Iterator[None]:
    """Inside the block, functions of `torch.cuda` that need a device are replaced."""

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        record.capturing = True
        yield
        record.capturing = False

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (9, 0),
        "is_current_stream_capturing": lambda: record.capturing,
        "CUDAGraph": type("Graph", (_Graph,), {"record": record}),
        "graph": capture,
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph_pool_handle": lambda: (0, 0),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(cuda_graph, "WARM_UP_RUNS", 1))
        yield


@contextmanager
def recording() -> Iterator[Record]:
    """Inside the block, tensors are fake, "cuda" is a device, and the record counts."""
    record = Record()
    with ExitStack() as stack:
        fakes = stack.enter_context(_FakeTensors(allow_non_fake_inputs=True))
        stack.enter_context(_device_functions(record))
        stack.enter_context(_Operations(record))
        stack.enter_context(_Functions(record, fakes))
        yield record


def counted(run: Callable[[], object], *, before: Callable[[], object] | None = None) -> Record:
    """The counts of `run`. `before` runs first and is not counted."""
    with recording() as record:
        if before is not None:
            before()
        record.launches, record.waits = 0, Counter()
        run()
    return record


def to_device(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace the tensors of a module by fake ones on "cuda". Call it inside `recording`."""

    def fake(x: Tensor) -> Tensor:
        chosen = dtype if dtype is not None and x.is_floating_point() else x.dtype
        return torch.empty(x.shape, dtype=chosen, device="cuda")

    return module._apply(fake)
