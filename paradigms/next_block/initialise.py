"""Initialisation of the weights."""

from __future__ import annotations

from torch import nn

from arvid.nn.linear import initialise_linear


def initialise_gpt(module: nn.Module) -> None:
    """GPT-2's initialisation without depth scaling, as in NBP's released code.

    | parameter | value |
    |---|---|
    | weights of Linear and Embedding outside the diffusion head | N(0, 0.02²) |
    | their biases | 0 |
    | `special` (begin-of-video and middle tokens) | N(0, 0.02²) |
    | `positions` | 0 |
    | diffusion head, norms, anything else | torch's default |
    """
    initialise_linear(module)
    for name, parameter in module.named_parameters():
        if name == "special" and parameter.numel():
            nn.init.normal_(parameter, std=0.02)
        elif name == "places.positions":
            nn.init.zeros_(parameter)
