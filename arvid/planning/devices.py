"""GPUs by name, with memory and peak rates from the vendors' data sheets.

Rates are those of dense matrix products with float32 accumulation. Data sheets that count structured sparsity give
twice these numbers.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass

import torch

from arvid.contracts import UserError
from arvid.hardware import hardware, product_rate

GIB = 2**30
USABLE = 0.92
"""Share of the nominal memory that tensors can use. Driver, libraries and fragmentation take the rest."""


@dataclass(frozen=True)
class Device:
    """A kind of GPU, or this machine."""

    name: str
    memory: float
    """Nominal memory in GiB."""
    half: float
    """Peak rate of bf16 products in TFLOP/s."""
    single: float
    """Peak rate of float32 products in TFLOP/s. It is that of TF32 if the GPU has it, since `arvid fit` turns it on."""
    source: str

    @property
    def bytes(self) -> float:
        """Bytes that tensors can use."""
        return self.memory * GIB * USABLE

    def rate(self, precision: str) -> float:
        """Peak FLOP/s of a training with Lightning's `precision`."""
        return 1e12 * (self.single if precision.startswith("32") else self.half)


DEVICES = (
    Device("B200", 180, 2250, 1125, "NVIDIA DGX B200 data sheet"),
    Device("H200", 141, 989.5, 494.7, "NVIDIA H200 data sheet"),
    Device("H100", 80, 989.5, 494.7, "NVIDIA H100 SXM data sheet"),
    Device("H100-PCIe", 80, 756, 378, "NVIDIA H100 PCIe data sheet"),
    Device("A100", 80, 312, 156, "NVIDIA A100 80GB data sheet"),
    Device("A100-40GB", 40, 312, 156, "NVIDIA A100 data sheet"),
    Device("L40S", 48, 362, 183, "NVIDIA L40S data sheet"),
    Device("L4", 24, 121, 60, "NVIDIA L4 data sheet"),
    Device("A6000", 48, 154.8, 77.4, "NVIDIA Ampere GA102 whitepaper"),
    Device("RTX4090", 24, 165.2, 82.6, "NVIDIA Ada whitepaper"),
    Device("RTX3090", 24, 71, 35.6, "NVIDIA Ampere GA102 whitepaper"),
)
MEASURED = "measured"
"""Name of this machine's own device. Its rates are measured."""
SIDE = 8192
"""Rows and columns of the matrices that are timed on a GPU."""


def find_device(name: str) -> Device:
    """The device with this name, ignoring case; this machine's for `measured`. Raises UserError for an unknown name."""
    if name == MEASURED:
        return measure()
    known = {_plain(device.name): device for device in DEVICES}
    if _plain(name) in known:
        return known[_plain(name)]
    close = difflib.get_close_matches(_plain(name), known, n=1)
    suggestion = f" Did you mean {known[close[0]].name}?" if close else ""
    raise UserError(
        f"There is no device {name!r}.{suggestion} Known: {', '.join(d.name for d in DEVICES)}; or {MEASURED}."
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace(" ", "").removeprefix("nvidia")


def measure() -> Device:
    """This machine's GPU, or else its CPU, with the rate of a large matrix product."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        rates = [_gpu_rate(dtype) for dtype in (torch.bfloat16, torch.float32)]
    else:
        memory = _memory_of_host() / GIB
        rates = [product_rate(dtype) for dtype in (torch.bfloat16, torch.float32)]
    half, single = (rate / 1e12 for rate in rates)
    return Device("this machine", memory, half, single, f"measured: {hardware()}")


def _gpu_rate(dtype: torch.dtype) -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as `arvid fit` does
    a = torch.ones(SIDE, SIDE, dtype=dtype, device="cuda")
    try:
        seconds = min(_seconds(a) for _ in range(10))
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * SIDE**3 / seconds


def _seconds(a: torch.Tensor) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    a @ a
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _memory_of_host() -> float:
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
