"""The route of a prompt to an mp4 passes few files. A file counts if one of its functions is called.

Statements at a file's top level and in class bodies do not count, so importing a file is not enough.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from arvid.cli import main

ROOT = Path(__file__).parents[1]
HOMES = tuple(str(ROOT / name) + "/" for name in ("arvid", "paradigms", "tokenizers"))
MOST_FILES = 52
"""Maximum number of files on the route of next-block prediction. Lower it when files are joined."""


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


def test_a_prompt_passes_few_files(trained_run: Path, tmp_path: Path) -> None:
    prompt = "a small red square moves left"
    arguments = ["sample", "--checkpoint", str(trained_run), "--prompt", prompt, "--count", "1"]
    files = files_of(lambda: main([*arguments, "--out", str(tmp_path)]))
    assert {"arvid/cli.py", "arvid/sampling/sample.py", "paradigms/next_block/paradigm.py"} <= files
    assert list(tmp_path.glob("*.mp4"))
    assert len(files) <= MOST_FILES, sorted(files)
