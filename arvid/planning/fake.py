"""Networks on fake tensors: every tensor has a shape and a dtype, but weights and activations take no memory.

So a laptop builds and "runs" the largest published model in seconds. Inside `without_storage`, modules are built whose
large parameters have no storage. `FakeNetworks` replaces the parameters by torch's fake tensors and runs the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from arvid.nn.attend import kernels_of_gpus
from arvid.nn.checkpointing import repeating_in
from arvid.nn.draws import drawing_by

LARGE = 2**14
"""Smallest number of elements of a tensor without storage. Smaller tensors keep values that constructors may read."""
FACTORIES = {torch.empty, torch.rand, torch.randn, torch.zeros, torch.ones}
"""Functions with which constructors make parameters."""
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}
"""Dtype of matrix products, by the first part of Lightning's `precision`."""

IN_FLOAT32 = {
    torch.layer_norm,
    torch.nn.functional.layer_norm,
    torch.nn.functional.softmax,
    torch.nn.functional.log_softmax,
    torch.nn.functional.cross_entropy,
    torch.nn.functional.mse_loss,
    torch.nn.functional.normalize,
    torch.softmax,
    torch.Tensor.softmax,
    torch.exp,
    torch.Tensor.exp,
    torch.log,
    torch.Tensor.log,
    torch.rsqrt,
    torch.Tensor.rsqrt,
    torch.pow,
    torch.Tensor.pow,
    torch.Tensor.__pow__,
    torch.square,
    torch.Tensor.square,
    torch.sum,
    torch.Tensor.sum,
    torch.cumsum,
    torch.Tensor.cumsum,
    torch.group_norm,
    torch.nn.functional.group_norm,
}
"""Functions that autocast computes in float32 on GPUs, but not on CPUs (PyTorch's table of autocast operations)."""


class _WithoutStorage(TorchFunctionMode):
    """Makes large floating-point tensors on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES and kwargs.get("device") is None and _is_large(args, kwargs):
            kwargs["device"] = "meta"
            kwargs.pop("generator", None)
        return func(*args, **kwargs)


def _is_large(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    given = args or (kwargs.get("size", ()),)
    size = given[0] if isinstance(given[0], list | tuple | torch.Size) else given
    floats = dtype is None or dtype.is_floating_point
    return floats and math.prod(size) >= LARGE


@contextmanager
def without_storage() -> Iterator[None]:
    """Inside the block, large parameters of new modules have no storage. Buffers keep their values."""
    with _WithoutStorage():
        yield


class FakeNetworks:
    """Fake tensors of one `FakeTensorMode`, and how networks run on them.

    Args:
        precision: Lightning's `precision` of the training, such as "bf16-mixed".
        gpu: count what a GPU computes and stores, not a CPU. They differ in attention kernels, and in the functions
            that autocast computes in float32.
    """

    def __init__(self, precision: str = "32-true", *, gpu: bool = True) -> None:
        self.precision = precision
        self.gpu = gpu
        self.drew = False
        """Whether a random number decided a shape in the last run."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def take(self, module: nn.Module) -> None:
        """Replace the module's parameters by fake ones on the CPU, with the dtype of the training."""
        taken: dict[int, nn.Parameter] = {}
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None:
                    if id(parameter) not in taken:
                        taken[id(parameter)] = self._fake(parameter)
                    child._parameters[name] = taken[id(parameter)]
            for name, buffer in child._buffers.items():
                if buffer is not None and buffer.device.type == "meta":
                    child._buffers[name] = self.zeros(*buffer.shape, dtype=buffer.dtype)

    def _fake(self, parameter: nn.Parameter) -> nn.Parameter:
        dtype = parameter.dtype
        if self.precision.endswith("-true") and dtype == torch.float32:
            dtype = DTYPES.get(self.precision.partition("-")[0], dtype)
        zeros = self.zeros(*parameter.shape, dtype=dtype)
        return nn.Parameter(zeros, requires_grad=parameter.requires_grad)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A fake tensor."""
        with self._mode:
            return torch.zeros(*shape, dtype=dtype)

    @contextmanager
    def running(self, *, autocast: bool = True, uniform: float = 0.5) -> Iterator[None]:
        """Inside the block, modules can run whose parameters `take` has replaced.

        Args:
            autocast: use the mixed precision of the training, if it has one.
            uniform: value from 0 to 1 that replaces each random number that decides a shape, such as the share of
                masked tokens.
        """
        mixed = self.precision.endswith("-mixed") and autocast
        self.drew = False
        with ExitStack() as stack:
            stack.enter_context(drawing_by(lambda sample: self._draw(sample, uniform)))
            stack.enter_context(self._mode)
            if mixed:
                dtype = DTYPES[self.precision.partition("-")[0]]
                stack.enter_context(torch.autocast("cpu", dtype))
            if self.gpu:
                stack.enter_context(kernels_of_gpus())
                stack.enter_context(_GpuFunctions())
                stack.enter_context(repeating_in(_GpuFunctions))
            yield

    def _draw(self, sample: Callable[[], Any], uniform: float) -> Any:
        self.drew = True
        return at_quantile(sample, uniform)


def at_quantile(sample: Callable[[], Any], uniform: float) -> Any:
    """`sample()` on real tensors, with `uniform` from 0 to 1 in place of every random number that it draws."""
    with unset_fake_temporarily(), _Uniform(uniform):
        return sample()


class _Uniform(TorchFunctionMode):
    """Makes `torch.rand` and `torch.randint` return one given quantile."""

    def __init__(self, uniform: float) -> None:
        super().__init__()
        self.uniform = uniform

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.rand:
            return torch.full_like(out, self.uniform)
        if func is torch.randint:
            return torch.full_like(out, int(self.uniform * args[0]))
        return out


class _GpuFunctions(TorchFunctionMode):
    """Imitates what a GPU stores: dropout masks of one byte per element, and float32 tensors under its autocast."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.dropout:
            return _gpu_dropout(*args, **kwargs)
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_float32(a) for a in args)
        return func(*args, **kwargs)


def _gpu_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if p and training else x


def _float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in DTYPES.values()
    return value.float() if is_half else value
