"""One patch for both token types: then a run of either type has the same number of tokens in its network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arvid import registry
from arvid.contracts import Condition, ContextSpec, Paradigm, Size, TokenGrid, TokenSpec, TokenType
from arvid.nn.attention import Attention
from arvid.training.export import load_tokenizer
from arvid.training.instantiate import bind

FOLDER = Path(__file__).parents[2] / "configs/paradigms"
TOKENIZERS: dict[TokenType, str] = {
    "continuous": "sprites-vae3d",
    "discrete": "sprites-magvit_fsq",
}
SIZE = Size(dim=48, depth=3, num_heads=3, head_dim=16, head_depth=1)
EQUAL = {"nova": {"patch": 1}}
"""Options that docs/paradigms.md names for equal grids; the other paradigms need none."""


@cache
def spec_of(token_type: TokenType) -> TokenSpec:
    return load_tokenizer(TOKENIZERS[token_type]).spec


def build(name: str, token_type: TokenType, options: dict[str, Any]) -> Paradigm:
    """A paradigm of the comparison, for the clips of the sprites' setting."""
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    given = config["model"]["init_args"]["paradigm"].get("init_args", {})
    cls = registry.get("paradigms", name)
    spec = spec_of(token_type)
    factory = bind(cls, {**given, **options}, what=name, positional=4)
    return factory(spec, spec.grid(9, 32, 32), ContextSpec(text_dim=8, text_len=12), SIZE)


def longest_sequence(net: Paradigm) -> int:
    """Positions of the longest input of an attention layer in a training step of one clip."""
    lengths = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, given, out: lengths.append(given[0].shape[1]))
    shape = (1, net.grid.t, net.grid.h, net.grid.w)
    size = net.spec.size
    ids = net.spec.type == "discrete"
    net.loss(torch.randint(size, shape) if ids else torch.randn(*shape, size), Condition())
    return max(lengths)


@pytest.mark.parametrize("name", registry.names("paradigms"))
def test_both_token_types_have_equal_sequences(name: str) -> None:
    nets = [build(name, token_type, EQUAL.get(name, {})) for token_type in TOKENIZERS]
    assert [net.grid for net in nets] == [TokenGrid(3, 8, 8)] * 2
    continuous, discrete = map(longest_sequence, nets)
    assert continuous == discrete
    assert continuous >= 64  # the tokens of a frame


def test_novas_patch_is_2_for_continuous_tokens_unless_it_is_given() -> None:
    lengths = [longest_sequence(build("nova", token_type, {})) for token_type in TOKENIZERS]
    assert lengths == [12 + 3 * 4, 16 + 64]  # the temporal layers'; the indicator and a frame
