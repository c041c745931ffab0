"""Makes `import torchvision` work with a torch build that does not match its compiled operators.

lpips and torchmetrics need only torchvision's Python part. But with a CPU build of torch and the CUDA build of
torchvision from the package index, the import fails: torchvision registers two operators that were not loaded. In that
case this module declares their schemas. The import then succeeds, and calling one of them is still an error.

Any library may be the first to import torchvision. So an import hook waits for that moment; `import arvid` itself needs
neither torchvision nor torch.
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
_library: torch.library.Library | None = None  # kept: garbage collection would unregister it


class _BeforeTorchvision(MetaPathFinder):
    """Import hook without modules: declares the operators at the first import of torchvision, then removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()


def prepare_torchvision() -> None:
    """Install the import hook, unless torchvision is imported already."""
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
