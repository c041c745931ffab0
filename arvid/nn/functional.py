"""A transformer's forward pass as plain function calls, for decoding on CPUs.

`nn.Module.__call__` takes some microseconds per module. At width 128 that is a third of a decoding step of one token.
This module calls the same functions in the same order as `arvid.nn.attention`, so results are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.nn.attend import attend
from arvid.nn.attention import KVCache, Transformer, TransformerBlock
from arvid.nn.linear import linear
from arvid.nn.positions import Rotation, rotate


class FunctionalTransformer:
    """The forward pass of a pre-norm transformer in eval mode, with its current weights. Hooks are not called."""

    def __init__(self, transformer: Transformer) -> None:
        blocks = [b for b in transformer.blocks if isinstance(b, TransformerBlock)]
        assert all(b.norm == "pre" for b in blocks)
        assert not transformer.training
        self.num_heads = blocks[0].attn.num_heads
        self.layers = [
            [functional(m) for m in (b.norm1, b.attn.qkv, b.attn.proj, b.norm2, b.mlp)]
            for b in blocks
        ]

    def __call__(
        self,
        x: Float[Tensor, "b n d"],
        mask: Tensor | None,
        caches: list[KVCache],
        rotation: Rotation | None,
    ) -> Float[Tensor, "b n d"]:
        """`Transformer.forward` for new positions after the cached ones."""
        batch, num, _ = x.shape
        for (norm1, qkv, proj, norm2, mlp), cache in zip(self.layers, caches, strict=True):
            heads = qkv(norm1(x)).view(batch, num, 3, self.num_heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, E)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            k, v = cache.append(k, v)
            x = x + proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
            x = x + mlp(norm2(x))
        return x


def functional(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a linear map, a LayerNorm or a sequence of modules. Other modules are returned unchanged."""
    if isinstance(module, nn.Linear):
        return partial(linear, weight=module.weight, bias=module.bias)
    if isinstance(module, nn.LayerNorm):
        weight, bias = module.weight, module.bias
        return partial(
            F.layer_norm,
            normalized_shape=module.normalized_shape,
            weight=weight,
            bias=bias,
            eps=module.eps,
        )
    if isinstance(module, nn.Sequential):
        return partial(_in_turn, [functional(m) for m in module])
    return module


def _in_turn(functions: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for function in functions:
        x = function(x)
    return x
