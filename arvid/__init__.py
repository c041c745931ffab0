"""arvid: comparative research on autoregressive video generation.

    model = arvid.load("runs/nova")
    clips = model.sample("a large red square moves left", seed=0)
    results = arvid.evaluate(model, "sprites-generation")

`load`, `evaluate`, `compare`, `plot`, `tokenize`, `detokenize` and `push` are imported at first use. docs/python.md
shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from arvid._torchvision import prepare_torchvision

if TYPE_CHECKING:
    from arvid.api.model import load
    from arvid.api.plotting import plot
    from arvid.api.publishing import push
    from arvid.api.scoring import compare, evaluate
    from arvid.api.tokens import detokenize, tokenize

__version__ = "0.1.0"

__all__ = ["__version__", "compare", "detokenize", "evaluate", "load", "plot", "push", "tokenize"]

prepare_torchvision()

_MODULES = {
    "compare": "arvid.api.scoring",
    "detokenize": "arvid.api.tokens",
    "evaluate": "arvid.api.scoring",
    "load": "arvid.api.model",
    "plot": "arvid.api.plotting",
    "push": "arvid.api.publishing",
    "tokenize": "arvid.api.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'arvid' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
