"""Activation checkpointing: parts of a network are computed again in the backward pass instead of being stored.

Losses and gradients stay the same; a step takes about a third longer. Modules with the attribute
`gradient_checkpointing` support it: stacks of blocks compute each block again, token heads a part of the tokens at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from arvid.contracts import TokenHead
from arvid.nn.draws import replaying

Checkpointing = Literal["none", "blocks", "blocks_and_head"]
"""What is computed again: nothing; each block of a stack; these and the token head."""
CHECKPOINTINGS: tuple[Checkpointing, ...] = get_args(Checkpointing)


def set_checkpointing(module: nn.Module, what: Checkpointing) -> None:
    """Turn checkpointing on or off in all parts of a module that support it."""
    switches: list[Any] = [m for m in module.modules() if hasattr(m, "gradient_checkpointing")]
    for child in switches:
        in_head = isinstance(child, TokenHead)
        child.gradient_checkpointing = what == "blocks_and_head" or (
            what == "blocks" and not in_head
        )


def checkpointed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`function(*arguments)`, of which only the arguments are stored for the backward pass.

    The second computation draws the same random numbers. Without gradients this is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    if torch.compiler.is_compiling():
        # Compiled code draws from torch's own generators only, and `checkpoint` restores these.
        out: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    else:
        out = checkpoint(function, *arguments, use_reentrant=False, context_fn=_contexts)
    return out


@contextmanager
def repeating_in(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside the block, second computations run in `context()`: for modes of torch that a backward pass leaves off."""
    global _repeating
    before, _repeating = _repeating, context
    try:
        yield
    finally:
        _repeating = before


_repeating: Callable[[], AbstractContextManager[Any]] = nullcontext


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, second = replaying()
    return first, _Both(second, _repeating())


class _Both:
    """Two contexts in one. Not a generator of contextlib, as in `arvid.nn.draws`."""

    def __init__(self, *contexts: AbstractContextManager[Any]) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)
