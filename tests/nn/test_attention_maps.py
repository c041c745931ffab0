"""Attention weights: those that the kernels used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from arvid.nn.attend import BlockCausal
from arvid.nn.attention import Transformer
from arvid.nn.attention_maps import attention_weights, recording
from arvid.nn.positions import rotation


@pytest.mark.parametrize("rotary", [False, True])
def test_weights_times_values_are_the_output(rotary: bool, rounding: Callable[..., Any]) -> None:
    model = Transformer(32, 2, 2, norm="pre").requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    x = torch.randn(3, 12, 32)
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[1, 2:] = True
    mask = BlockCausal(torch.arange(12) // 4).with_padding(padding)
    codes = rotation(torch.arange(12)[:, None].expand(12, 3), 16) if rotary else None
    first = model.blocks[0]
    normed = first.norm1(x)
    weights = attention_weights(first.attn, normed, mask, codes)
    values = first.attn.qkv(normed)[..., 64:].unflatten(-1, (2, 16)).transpose(1, 2)
    made = first.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    expected = first.attn(normed, mask, rotation=codes)
    tolerance = rounding(expected, first)
    torch.testing.assert_close(made, expected, **tolerance)
    with recording(model) as maps:
        model(x, mask, rotation=codes)
    assert len(maps) == 2
    torch.testing.assert_close(maps[0], weights.mean((0, 1)))
    model(x, mask, rotation=codes)
    assert len(maps) == 2  # outside nothing is recorded
