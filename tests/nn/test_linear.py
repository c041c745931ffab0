"""Linear maps of few rows, and steps without calls of modules: the same numbers as the usual way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.nn.attention import BlockStyle, Transformer
from arvid.nn.functional import FunctionalTransformer
from arvid.nn.linear import LARGE, Linear, linear
from arvid.nn.positions import rotation

LARGE_MAP = (640, 320)
assert LARGE_MAP[0] * LARGE_MAP[1] >= LARGE


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Filled with the matrix of each product that is computed as a batch."""
    found: list[Tensor] = []
    usual = torch.baddbmm

    def baddbmm(added: Tensor, parts: Tensor, columns: Tensor) -> Tensor:
        found.append(parts)
        return usual(added, parts, columns)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "is_batched"),
    [((1, 1), True), ((2, 1), True), ((1, 2), True), ((), True), ((1, 3), False), ((40,), False)],
)
def test_few_rows_give_the_same(
    batched: list[Tensor], shape: tuple[int, ...], is_batched: bool, bias: bool
) -> None:
    net, x = Linear(LARGE_MAP[1], LARGE_MAP[0], bias=bias), torch.randn(*shape, LARGE_MAP[1])
    with torch.no_grad():
        found, expected = net(x), F.linear(x, net.weight, net.bias)
    # Weights are below 1/sqrt(D): sums of D products near 1 in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()
    assert bool(batched) is is_batched


def test_numbers_of_rows_that_no_part_divides() -> None:
    x, weight = torch.randn(1, 2, 320), torch.randn(701, 320) / 320**0.5
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_training_and_other_types_take_the_usual_kernel(batched: list[Tensor]) -> None:
    net, x = Linear(LARGE_MAP[1], LARGE_MAP[0]), torch.randn(1, LARGE_MAP[1])
    net(x).sum().backward()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert net(x).dtype == torch.bfloat16
        net.bfloat16()(x.bfloat16())
        Linear(16, 16)(torch.randn(1, 16))
    assert not batched
    assert net.weight.grad is not None


@pytest.mark.parametrize("style", ["gpt", "llama"])
@pytest.mark.parametrize("num", [1, 3])
@torch.no_grad()
def test_plain_steps_are_those_of_the_modules(style: BlockStyle, num: int) -> None:
    net = Transformer(24, 2, 2, norm="pre", dropout=0.5, style=style).eval()
    for parameter in net.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    codes: Any = None
    if style == "llama":
        codes = rotation(torch.randint(9, (num, 3)), 12)
    mask = torch.rand(2, 1, 1, 4 + num) < 0.7
    mask[..., -1] = True
    x, usual, plain = torch.randn(2, 4 + num, 24), net.new_caches(8), net.new_caches(8)
    for caches in (usual, plain):
        net(x[:, :4], caches=caches)
    found = FunctionalTransformer(net)(x[:, 4:], mask, plain, rotation=codes)
    assert torch.equal(found, net(x[:, 4:], mask, usual, rotation=codes))
    assert all(cache.length == 4 + num for cache in plain)


def test_plain_steps_are_of_pre_norm_networks_in_eval_mode() -> None:
    for net in (Transformer(8, 1, 1, norm="post").eval(), Transformer(8, 1, 1, norm="pre")):
        with pytest.raises(AssertionError):
            FunctionalTransformer(net)
