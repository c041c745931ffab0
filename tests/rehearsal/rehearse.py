"""Runs cases and prints their counts as JSON: `rehearse.py LIBRARY [CASE ...]`. LIBRARY is `device.cpp`, built.

It is a program of its own, because the library must be loaded before PyTorch.
"""

from __future__ import annotations

import ctypes
import json
import sys
import traceback
from typing import Any

ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)


def outcome(run: Any) -> dict[str, Any]:
    """Launches and waits of a case, or its error."""
    try:
        record = run()
    except Exception:
        return {"error": traceback.format_exc()}
    return {"launches": record.launches, "waits": dict(record.waits)}


if __name__ == "__main__":
    from cases import all_cases

    chosen = sys.argv[2:]
    cases = [case for case in all_cases() if not chosen or case[0] in chosen]
    print(json.dumps({name: outcome(run) for name, run in cases}))
