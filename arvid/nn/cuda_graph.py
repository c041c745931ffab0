"""CUDA graphs: replay a function of fixed shapes without launching its kernels one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_RUNS = 3


class CudaGraph:
    """Captures `function(*inputs) -> Tensor` once. A call copies its inputs into the captured tensors and replays.

    The function may change other tensors, such as a cache. But it runs several times with the first inputs before the
    capture, so repeated runs must do no harm. The next call overwrites the returned tensor.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self.inputs = [x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device):  # it may not be the current device
            # CUDA requires warm-up on a side stream: lazy initialisation must not be captured.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        with torch.cuda.device(self.output.device):
            self.graph.replay()
        return self.output
