"""Weights at the start."""

from __future__ import annotations

from torch import nn


def initialise_linear(module: nn.Module) -> None:
    """Draw the weights of linear maps and embeddings from N(0, 0.02²) and set biases to 0, as GPT-2 does.

    A diffusion head (`head.net`) keeps torch's defaults.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Embedding) and not name.startswith("head.net"):
            nn.init.normal_(child.weight, std=0.02)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)
