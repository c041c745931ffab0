"""torch.compile for the losses of a paradigm: the option `compile` of a generator's training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from arvid.contracts import Paradigm, TokenHead
from arvid.nn import draws

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
"""Options of inductor, torch's default backend. With this one, a seed draws the same numbers as without compilation."""
MAX_GRAPHS = 64
"""Maximum number of graphs of one function; torch's default is 8. All blocks of a class have the same `forward`."""
Backend = str | Callable[..., Any]
"""A backend of torch.compile."""


def compile_losses(paradigm: Paradigm, backend: Backend = "inductor") -> None:
    """Compile the paradigm's method `compiled_method` as one graph.

    The second step compiles again, because it finds the masks and tables that the first step has cached. Then lengths
    that vary become symbolic. Batches that several processes share are not compiled, because their random numbers come
    from a shared stream.

    Args:
        paradigm: the paradigm; its method is replaced.
        backend: a backend of torch.compile.
    """
    # None: a length becomes symbolic when a second value of it occurs.
    dynamic = None if paradigm.varying_lengths else False
    _compile(paradigm, paradigm.compiled_method, backend, dynamic, when=_draws_alone)


def compile_units(units: Iterable[nn.Module], backend: Backend = "inductor") -> None:
    """Compile units of a network that will be sharded: the `forward` of a block, the `loss` of a token head.

    Each method becomes one graph, which similar blocks share. FSDP2's hooks run before and after the graph, to gather
    and free the weights. Call this before the units are sharded, so that the hooks of a token head wrap its compiled
    method. Validation, sampling and batches that several processes share are not compiled.

    Args:
        units: the units, such as those of `arvid.training.sharding.units`.
        backend: a backend of torch.compile.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    for unit in units:
        name = "loss" if isinstance(unit, TokenHead) else "forward"
        _compile(unit, name, backend, None, when=_trains_alone)


def _draws_alone() -> bool:
    """Whether this process draws the random numbers of its batch alone."""
    return not draws.is_shared()


def _trains_alone() -> bool:
    """Whether this is a training step whose random numbers this process draws alone."""
    return torch.is_grad_enabled() and _draws_alone()


def _compile(
    part: Any, name: str, backend: Backend, dynamic: bool | None, *, when: Callable[[], bool]
) -> None:
    """Replace a method of an object. The new one calls a compiled method if `when()` is true, else the plain one."""
    plain = getattr(part, name)
    options = OPTIONS if backend == "inductor" else None
    compiled = torch.compile(
        plain, backend=backend, fullgraph=True, dynamic=dynamic, options=options
    )

    @functools.wraps(plain)
    def compiled_or_plain(*args: Any, **kwargs: Any) -> Any:
        return (compiled if when() else plain)(*args, **kwargs)

    setattr(part, name, compiled_or_plain)
