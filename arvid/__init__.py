"""arvid: comparative research on autoregressive video generation.

`arvid.load(path)`, `arvid.sample(model, conditions)` and `arvid.evaluate(run, protocol)` are the main functions. They
are imported at first use.
"""

from importlib import import_module
from typing import Any

from arvid._torchvision import prepare_torchvision

__version__ = "0.1.0"

prepare_torchvision()

_SHORT = {
    "load": ("arvid.training.generator_module", "load_generator"),
    "sample": ("arvid.sampling.sample", "sample"),
    "evaluate": ("arvid.evaluation.rows", "evaluate_run"),
}


def __getattr__(name: str) -> Any:
    if name not in _SHORT:
        raise AttributeError(f"module 'arvid' has no attribute {name!r}")
    module, attribute = _SHORT[name]
    return getattr(import_module(module), attribute)
