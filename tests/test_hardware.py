"""What the machine is said to be: its instructions, what limits them, and the rates of products."""

from __future__ import annotations

import pytest
import torch

from arvid import hardware


def test_instructions_are_those_that_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hardware.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(hardware, "_cpuinfo", lambda key: "fpu avx512f avx512_bf16 amx_tile")
    assert hardware.instruction_set() == "AVX512, avx512_bf16"


def test_variables_that_limit_the_instructions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(hardware, "_cpuinfo", lambda key: "fpu avx512f avx512_bf16")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert hardware.instruction_set() == "AVX2 (limited by ONEDNN_MAX_CPU_ISA=AVX2)"


def test_a_rate_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "RATE_DIM", 8)
    monkeypatch.setattr(hardware, "RATE_SECONDS", 0.0)
    hardware.product_rate.cache_clear()
    try:
        rate = hardware.product_rate(torch.float32)
        assert rate > 0
        assert hardware.product_rate(torch.float32) == rate
        assert "GFLOP/s in float32" in hardware.cpu_summary()
        assert "GFLOP/s in bfloat16" in hardware.cpu_summary()
    finally:
        hardware.product_rate.cache_clear()  # which measured another product
