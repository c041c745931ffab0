"""torch.compile for the losses of a paradigm: the option `compile` of a generator's training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from arvid.contracts import Paradigm
from arvid.nn import draws

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
"""Options of inductor, torch's default backend. A seed gives the same random numbers as without compilation."""


def compile_losses(paradigm: Paradigm, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the paradigm's method `compiled_method` as one graph.

    The second step compiles again, because it finds the masks and tables that the first step has cached. Lengths that
    vary become symbolic then. Batches that several processes share are not compiled: their random numbers come from a
    shared stream.

    Args:
        paradigm: the paradigm; its method is replaced.
        backend: a backend of torch.compile.
    """
    name = paradigm.compiled_method
    plain = getattr(paradigm, name)
    options = OPTIONS if backend == "inductor" else None
    # None: a length becomes symbolic when a second value of it occurs.
    dynamic = None if paradigm.varying_lengths else False
    compiled = torch.compile(
        plain, backend=backend, fullgraph=True, dynamic=dynamic, options=options
    )

    @functools.wraps(plain)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (plain if draws.is_shared() else compiled)(*args, **kwargs)

    setattr(paradigm, name, choose)
