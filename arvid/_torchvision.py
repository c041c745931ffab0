"""Makes `import torchvision` work beside a torch build that its compiled operators were not made for.

lpips and torchmetrics need torchvision's Python part only, but a CPU build of torch beside the registry's CUDA
build of torchvision fails on import: two operators are described to torch without having been loaded. Their
schemas are declared here in that case, so that the import succeeds and calling one of them is still an error.

Whoever imports torchvision first, arvid or another library, is to find them declared. So a hook waits for that import:
`import arvid` itself needs neither torchvision nor torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # unregistered when collected, so it is kept here


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing itself: declares the operators when torchvision is first looked for, and then is gone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()


def prepare_torchvision() -> None:
    """Have the operators that torchvision cannot load in this environment declared before its import."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_missing_operators() -> None:
    global _library
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        for file in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(file))
    except OSError:
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
