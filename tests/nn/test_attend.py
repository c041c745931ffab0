"""The attention formula: every kernel computes it, every mask hides what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from arvid.nn.attend import BlockCausal, CleanCopy, attend

BLOCKS = torch.tensor([0, 0, 0, 1, 1, 2])
TOKENS = torch.tensor([0, 0, 1, 2, 3, 4])
PADDING = torch.tensor([[False, True], [False, False]])


def formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.masked_fill(~seen, -math.inf).softmax(-1) @ v.double()).to(q.dtype)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 3, 6, 4).to(dtype) for _ in range(3)]


def test_a_block_sees_itself_and_all_before_it() -> None:
    seen = BlockCausal(torch.tensor([0, 1, 1, 2])).dense()
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_padding_sees_nothing_but_itself_of_padding() -> None:
    seen = BlockCausal(BLOCKS, padding=PADDING).dense()
    assert seen.shape == (2, 1, 6, 6)
    assert seen[0, 0, :, 1].tolist() == [False, True, False, False, False, False]
    assert torch.equal(seen[1, 0], BlockCausal(BLOCKS).dense())


def test_noisy_blocks_see_themselves_and_clean_ones_before() -> None:
    mask = CleanCopy(torch.tensor([0, 1, 2, 1, 2]), torch.tensor([0, 0, 0, 1, 1]).bool())
    assert mask.dense().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "mask",
    [
        BlockCausal(BLOCKS),
        BlockCausal(BLOCKS).with_padding(PADDING),
        BlockCausal(TOKENS, first=2),
        BlockCausal(torch.arange(6), first=0),
        BlockCausal(TOKENS, first=2).with_padding(PADDING),
        CleanCopy(torch.tensor([0, 1, 2, 1, 2, 2]), torch.arange(6) >= 3),
    ],
    ids=["blocks", "padded", "tokens after a context", "tokens", "padded tokens", "clean copy"],
)
def test_every_way_is_the_formula(
    mask: BlockCausal, dtype: torch.dtype, rounding: Callable[..., Any]
) -> None:
    q, k, v = inputs(dtype)
    expected = formula(q, k, v, mask.dense())
    terms = 4 + 6 if dtype == torch.float32 else 2  # scores, then values
    tolerance = rounding(expected, terms)
    for given in (mask, mask.dense()):
        torch.testing.assert_close(attend(q, k, v, given), expected, **tolerance)


@pytest.mark.parametrize("padding", [None, PADDING])
def test_flex_attention_is_told_the_same(padding: Tensor | None) -> None:
    """Its kernels run on GPUs; what they are given is computed here without them."""
    q, k, v = inputs()
    mask = BlockCausal(BLOCKS).with_padding(padding)
    found = flex_attention(q, k, v, score_mod=mask.score(), block_mask=mask.flex())
    torch.testing.assert_close(found, formula(q, k, v, mask.dense()), rtol=0, atol=1e-5)


def test_no_mask_hides_nothing() -> None:
    q, k, v = inputs()
    everything = torch.ones(6, 6, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, None), formula(q, k, v, everything))


def test_autocast_keeps_the_callers_type() -> None:
    q, k, v = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v, BlockCausal(BLOCKS)).dtype == torch.float32
