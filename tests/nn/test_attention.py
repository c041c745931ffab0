"""Attention: a cache changes nothing, masks mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from arvid.nn.attend import BlockCausal
from arvid.nn.attention import Attention, KVCache, Transformer, set_stochastic_depth


@pytest.mark.parametrize("norm", ["pre", "branch", "post"])
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (2, 2, 2), (3, 3), (2, 4)])
def test_cached_equals_masked(
    norm: str, chunks: tuple[int, ...], rounding: Callable[..., Any]
) -> None:
    net = Transformer(16, 2, 2, norm=norm)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 16)
    ids = torch.arange(len(chunks)).repeat_interleave(torch.tensor(chunks))
    whole = net(x, BlockCausal(ids))
    caches = net.new_caches(6)
    parts = [net(part, caches=caches) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **rounding(whole, net))


def test_a_full_cache_refuses_more() -> None:
    cache = KVCache(2)
    keys = torch.randn(1, 1, 2, 4)
    cache.append(keys, keys)
    with pytest.raises(AssertionError, match="cache of 2 positions"):
        cache.append(keys, keys)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        Attention(10, 3)


def test_normed_queries_and_keys_have_unit_mean_squares() -> None:
    """Attention does not change when what queries and keys are made of is scaled; under autocast types stay equal."""
    net = Attention(16, 2, bias=False, qk_norm=True)
    x = torch.randn(2, 5, 16)
    before = net(x)
    with torch.no_grad():
        net.qkv.weight[:32] *= 7
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16


def test_stochastic_depth_skips_branches_of_whole_rows_in_training_alone() -> None:
    torch.manual_seed(0)
    net = Transformer(16, 4, 2, norm="pre")
    x = torch.randn(2000, 3, 16)
    plain = net.eval()(x)
    set_stochastic_depth([net], 0.8)
    assert torch.equal(net.eval()(x), plain)
    first, last = (net.train().blocks[i] for i in (0, 3))
    for block, rate in ((first, 0.2), (last, 0.8)):
        branch = block.dropout(torch.ones(2000, 3, 16))
        kept = branch[:, 0, 0] != 0
        torch.testing.assert_close(branch[kept], torch.full_like(branch[kept], 1 / (1 - rate)))
        assert not branch[~kept].any()
        assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.05)
