"""Makes `import torchvision` work beside a torch build that its compiled operators were not made for.

lpips and torchmetrics need torchvision's Python part only, but a CPU build of torch beside the registry's CUDA
build of torchvision fails on import: two operators are described to torch without having been loaded. Their
schemas are declared here in that case, so that the import succeeds and calling one of them is still an error.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # unregistered when collected, so it is kept here


def declare_missing_operators() -> None:
    """Declare the operators that torchvision cannot load in this environment; does nothing if it can."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    try:
        for file in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(file))
    except OSError:
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
