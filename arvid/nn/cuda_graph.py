"""CUDA graphs: replay functions of fixed shapes without launching their kernels one by one.

`graphs_of(module)` captures on first use, one graph for each key and shape of the inputs. It suits functions without a
state whose shapes return: the sets of NOVA's tokens, the denoising steps of a diffusion head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

WARM_UP_RUNS = 3
MOST_GRAPHS = 512
"""Graphs of a module that are kept. A graph of a thousand kernels takes a few MB."""


class GraphMemory:
    """Memory that several graphs share: buffers of their inputs, and what they compute on the way.

    Inputs at the same position, with the same shape and type, share a buffer. Graphs that share memory must be replayed
    one after another, and an output must be used before the next replay.
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self._buffers: dict[Hashable, Tensor] = {}

    def buffers(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """A buffer for each input."""
        keys = [(i, x.shape, x.dtype, x.device) for i, x in enumerate(inputs)]
        for key, given in zip(keys, inputs, strict=True):
            if key not in self._buffers:
                self._buffers[key] = given.clone()
        return [self._buffers[key] for key in keys]


class CudaGraph:
    """Captures `function(*inputs) -> Tensor` once. A call copies its inputs into the captured tensors and replays.

    The function may change other tensors, such as a cache. But it runs several times with the first inputs before the
    capture, so repeated runs must do no harm. The next call overwrites the returned tensor.

    Args:
        function: what is captured. It must not wait for the device, nor draw random numbers.
        inputs: tensors of the shapes that all calls have.
        memory: memory that is shared with other graphs.
    """

    def __init__(
        self, function: Callable[..., Tensor], *inputs: Tensor, memory: GraphMemory | None = None
    ) -> None:
        self.inputs = memory.buffers(inputs) if memory else [x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device):  # it may not be the current device
            # CUDA requires warm-up on a side stream: lazy initialisation must not be captured.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            pool = memory.pool if memory else None
            # thread_local: threads that load data may use CUDA during the capture.
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        with torch.cuda.device(self.output.device):
            self.graph.replay()
        return self.output


class CudaGraphs:
    """Graphs of a module's functions, by key and by shapes of the inputs. They share memory (see `GraphMemory`)."""

    def __init__(self) -> None:
        self._memory = GraphMemory()
        self._graphs: dict[Hashable, CudaGraph] = {}

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, which the next call overwrites.

        Args:
            key: everything the function depends on besides its inputs and the module's weights.
            function: see CudaGraph. It is called only if this key is new.
            inputs: tensors on the module's device.
        """
        full_key = (key, *((x.shape, x.dtype) for x in inputs))
        if full_key not in self._graphs:
            if len(self._graphs) >= MOST_GRAPHS:
                self._memory, self._graphs = GraphMemory(), {}
            self._graphs[full_key] = CudaGraph(function, *inputs, memory=self._memory)
        return self._graphs[full_key](*inputs)


_CAPTURED: WeakKeyDictionary[nn.Module, tuple[object, CudaGraphs]] = WeakKeyDictionary()
"""The graphs of each module, and the state of its weights that they are for."""
_allowed = True


def graphs_of(module: nn.Module) -> CudaGraphs:
    """The graphs of a module's functions. After its weights have moved in memory there are new ones."""
    # Tensors that were made in inference mode cannot be written outside of it.
    state = [p.data_ptr() for p in module.parameters()], torch.is_inference_mode_enabled()
    known = _CAPTURED.get(module)
    if known is None or known[0] != state:
        known = _CAPTURED[module] = (state, CudaGraphs())
    return known[1]


def may_capture() -> bool:
    """Whether sampling on a GPU captures graphs. Not under autocast: it frees the casted weights, which graphs need."""
    return _allowed and not torch.is_autocast_enabled("cuda")


@contextmanager
def without_graphs() -> Iterator[None]:
    """Inside the block, kernels are launched one by one. For measurements and tests."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before
