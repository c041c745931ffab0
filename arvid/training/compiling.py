"""torch.compile for the losses of a paradigm: the option `compile` of a generator's training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from arvid.contracts import Paradigm
from arvid.nn import draws

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
"""Options of inductor, torch's default backend: random numbers are those of torch, so seeds mean the same."""


def compile_losses(paradigm: Paradigm, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the paradigm's method `compiled_method` as one graph.

    The second step compiles again: what the first one has made and kept is now given. If lengths vary, they are then
    symbolic. Batches that several processes share are computed without the compiled code, since their random numbers
    come from a shared stream.

    Args:
        paradigm: changed in place.
        backend: torch's backend.
    """
    name = paradigm.compiled_method
    plain = getattr(paradigm, name)
    options = OPTIONS if backend == "inductor" else None
    dynamic = None if paradigm.varying_lengths else False  # None: symbolic from the second length
    compiled = torch.compile(
        plain, backend=backend, fullgraph=True, dynamic=dynamic, options=options
    )

    @functools.wraps(plain)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (plain if draws.is_shared() else compiled)(*args, **kwargs)

    setattr(paradigm, name, choose)
