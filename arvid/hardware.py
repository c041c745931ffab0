"""Describes the machine and measures the rate of its matrix products.

The rate depends on the CPU's instructions more than on its age: without bfloat16 instructions, a bfloat16 product takes
10 to 90 times as long as one in float32. So speeds are reported with both rates.
"""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from pathlib import Path

import torch

RATE_DIM = 1024
"""Rows and columns of the timed matrices."""
RATE_SECONDS = 0.2
"""Time for which the product is repeated; a slower product runs once."""
SHOWN_FLAGS = ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
"""Instructions for half precision, as the kernel names them."""
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that limit the CPU instructions used by torch."""


def hardware() -> str:
    """Short description of the machine: CPU model and cores, with the GPUs first if there are any."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cpu = f"{_cpu_model()}, {cores} core{'s' if cores != 1 else ''}"
    if not torch.cuda.is_available():
        return cpu
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return f"{gpus}; {cpu}"


def instruction_set() -> str:
    """The CPU instructions that torch uses, e.g. `AVX512, avx512_bf16`, with the variables that limit them."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    used = [torch.backends.cpu.get_cpu_capability()]
    if not limits:
        used += [flag for flag in SHOWN_FLAGS if flag in _cpuinfo("flags").split()]
    return ", ".join(used) + (f" (limited by {' '.join(limits)})" if limits else "")


@cache
def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a 1024 x 1024 matrix product on the CPU with torch's current threads; measured once."""
    a = torch.ones(RATE_DIM, RATE_DIM, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        a @ a
        now = time.perf_counter()
        best = min(best, now - start)
        if now - began > RATE_SECONDS:
            return 2 * RATE_DIM**3 / best


def cpu_summary() -> str:
    """CPU instructions and both rates as a sentence, for the top of a table of CPU speeds."""
    rates = ", ".join(
        f"{product_rate(dtype) / 1e9:.1f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.bfloat16)
    )
    return (
        f"CPU instructions: {instruction_set()}. A {RATE_DIM} x {RATE_DIM} product with "
        f"{torch.get_num_threads()} thread(s): {rates}."
    )


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(found, "")
