"""Counts the files of arvid that a command passes through: those of which a function is called while it runs.

Statements at a file's top level and in class bodies do not count: importing a file is no use of it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
HOMES = tuple(str(ROOT / name) + "/" for name in ("arvid", "paradigms", "tokenizers"))


def files_of(run: Callable[[], Any]) -> set[str]:
    """Paths, relative to the project, of the files whose functions `run` calls, in any thread."""
    codes: dict[Any, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            codes[frame.f_code] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    functions = {code.co_filename for code in codes if _is_function(code)}
    real = {str(Path(name).resolve()) for name in functions if name.startswith(HOMES)}
    return {str(Path(name).relative_to(ROOT)) for name in real}


def _is_function(code: Any) -> bool:
    """Bodies of modules and classes have no optimised locals."""
    return bool(code.co_flags & 0x1)  # inspect.CO_OPTIMIZED
