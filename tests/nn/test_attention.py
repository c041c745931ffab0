"""Attention: a cache changes nothing, masks mean what they say."""

from __future__ import annotations

import pytest
import torch

from arvid.nn.attention import Attention, KVCache, Transformer, block_causal_mask


@pytest.mark.parametrize("norm", ["pre", "branch", "post"])
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (2, 2, 2), (3, 3), (2, 4)])
def test_cached_equals_masked(norm: str, chunks: tuple[int, ...]) -> None:
    net = Transformer(16, 2, 2, norm=norm)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 16)
    ids = torch.arange(len(chunks)).repeat_interleave(torch.tensor(chunks))
    whole = net(x, block_causal_mask(ids))
    caches = net.new_caches(6)
    parts = [net(part, caches=caches) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)


def test_block_causal_mask() -> None:
    mask = block_causal_mask(torch.tensor([0, 1, 1, 2]))
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_full_cache_refuses_more() -> None:
    cache = KVCache(2)
    keys = torch.randn(1, 1, 2, 4)
    cache.append(keys, keys)
    with pytest.raises(AssertionError, match="cache of 2 positions"):
        cache.append(keys, keys)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        Attention(10, 3)
