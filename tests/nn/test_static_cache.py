"""The cache of constant shape: the same attention, called in the way that lets GPUs split the keys."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.nn.attend import attend
from arvid.nn.static_cache import StaticKVCache, clear, marks_of

LENGTH = 40


def filled(
    num: int, visible: Tensor, dim: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[StaticKVCache, Tensor, Tensor]:
    """A cache of `num` positions, and its keys and values (2, 3, num, dim)."""
    cache = StaticKVCache(LENGTH)
    k, v = (torch.randn(2, 3, num, dim, dtype=dtype) for _ in "kv")
    cache.append(k, v)
    cache.mark(marks_of(visible))
    return cache, k, v


@pytest.mark.parametrize("dim", [4, 16, 21])
@pytest.mark.parametrize("num_new", [1, 5, 16])
@pytest.mark.parametrize("reach", [26, LENGTH])
def test_new_queries_see_the_visible_positions(dim: int, num_new: int, reach: int) -> None:
    """In several steps, of which one is repeated. Clips have different padding."""
    visible = (torch.arange(LENGTH) < 10).repeat(2, 1, 1, 1)
    visible[1, ..., 3:7] = False
    cache, keys, values = filled(10, visible, dim)
    for start in (10, 10, 10 + num_new) if num_new <= 5 else (10,):
        q, k, v = (4 * torch.randn(2, 3, num_new, dim) for _ in "qkv")
        keys, values = (torch.cat([a[:, :, :start], b], 2) for a, b in ((keys, k), (values, v)))
        cache.slots, cache.reach = torch.arange(start, start + num_new), reach
        seen = visible[..., : keys.shape[2]] | (torch.arange(keys.shape[2]) >= 10)
        expected = attend(q, keys, values, seen.expand(2, 1, num_new, -1))
        torch.testing.assert_close(cache.attend(q, k, v, None), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
def test_another_clip_does_not_see_the_last_one(value: float) -> None:
    """Also if a value of the last clip was not finite."""
    everything = torch.ones(1, 1, 1, LENGTH, dtype=torch.bool)
    cache, _, _ = filled(LENGTH, everything)
    cache.slots = torch.tensor([LENGTH - 1])
    cache.attend(*torch.full((3, 2, 3, 1, 16), value), None)
    clear([cache])
    cache.rewind(0)
    k, v = torch.randn(2, 2, 3, 4, 16)
    cache.append(k, v)
    cache.mark(marks_of(everything & (torch.arange(LENGTH) < 4)))
    q, new_k, new_v = torch.randn(3, 2, 3, 1, 16)
    cache.slots = torch.tensor([4])
    expected = attend(q, torch.cat([k, new_k], 2), torch.cat([v, new_v], 2), None)
    found = cache.attend(q, new_k, new_v, None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_hidden_keys_have_no_weight_at_all() -> None:
    """Even with products far above those of trained networks, at the largest head dimension."""
    cache, _, v = filled(8, torch.arange(LENGTH).view(1, 1, 1, -1) == 0, dim=256)
    keys, values = cache._padded
    keys[:, :, 1:8, :256], values[:, :, 1:8] = 1000.0, 1e30
    q, new = torch.full((2, 3, 1, 256), 0.05), torch.zeros(2, 3, 1, 256)  # hidden products: 800
    cache.slots = torch.tensor([8])
    assert cache.attend(q, new, new, None).abs().max() <= v.abs().max()


@pytest.mark.parametrize("dim", [16, 21, 64, 96, 128])
def test_the_call_is_one_that_flash_attention_takes(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conditions of PyTorch's `can_use_flash_attention`; otherwise SDPA takes a kernel that does not split keys."""
    calls: list[tuple[Tensor, ...]] = []
    usual = F.scaled_dot_product_attention

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        assert options.keys() == {"scale"}  # above all no mask
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        calls.append((q, k, v))
        return usual(q, k, v, **options)

    visible = torch.arange(LENGTH).view(1, 1, 1, -1) < 10
    cache, _, _ = filled(10, visible, dim, torch.bfloat16)
    cache.slots, cache.reach = torch.arange(10, 14), 20
    new = torch.randn(3, 2, 4, 3, dim, dtype=torch.bfloat16).transpose(2, 3)
    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    found = cache.attend(*new, None)
    assert found.shape == (2, 3, 4, dim)
    ((q, k, v),) = calls
    assert q.shape[3] == k.shape[3] == v.shape[3]
    assert q.shape[3] % 8 == 0
    assert k.shape[2] == v.shape[2] == 20
    for x in (q, k, v):
        assert x.dtype == torch.bfloat16
        assert x.stride(3) == 1
        assert all(x.stride(i) % 8 == 0 for i in range(3))  # 16 bytes
    assert k.data_ptr() == cache._padded[0].data_ptr()  # not a copy
    assert torch.backends.cuda.cudnn_sdp_enabled()  # as before


COMPILED = """
import torch
from arvid.nn.attention import Transformer
from arvid.nn.static_cache import StaticKVCache, marks_of

torch.manual_seed(0)
net, graphs = Transformer(32, 2, 2, norm="pre").eval(), []
caches = [StaticKVCache(40) for _ in net.blocks]

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

def step(reach, x, slots):
    for cache in caches:
        cache.slots, cache.reach = slots, reach
    return net(x, None, caches)

compiled = torch.compile(step, backend=backend, fullgraph=True)
with torch.no_grad():
    net(torch.randn(2, 8, 32), None, caches)
    for cache in caches:
        cache.mark(marks_of(torch.arange(40).view(1, 1, 1, -1) < 8))
    for reach in (20, 25, 30, 40):
        x, slots = torch.randn(2, 4, 32), torch.arange(8, 12)
        torch.testing.assert_close(compiled(reach, x, slots), step(reach, x, slots))
print(len(graphs))
"""


@pytest.mark.slow
def test_a_step_compiles_to_few_graphs() -> None:
    """One for the first reach, and one for all others. In a process without checks of shapes (see test_compiling)."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) <= 2
