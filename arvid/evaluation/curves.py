"""Training curves from a run's CSV logs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

MAX_POINTS = 300
FRAME_LOSS = "val_frame_"
"""Beginning of the names of validation losses by latent frame."""


def read_curve(
    run: Path, part: str = "per_token", *, by_frame: bool = False
) -> tuple[dict[str, float | None], ...]:
    """Points with `step`, `train_loss` and `val_loss` in order, thinned to a few hundred; empty without logs.

    `part` names the logged loss. The default is the mean over predicted tokens, the same quantity in every paradigm.
    `by_frame` adds the validation loss of each latent frame: `val_frame_0`, `val_frame_1`, ... An interrupted run has
    several logs; where they overlap the later one counts.
    """
    columns = {"train_loss": f"train_{part}", "val_loss": f"val_{part}"}
    # training and validation losses of a step are in different lines: merge them by step
    steps: dict[int, dict[str, float | None]] = {}
    logs = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:]))
    for log in logs:
        with open(log, newline="") as file:
            lines = csv.DictReader(file)
            if by_frame:
                names = lines.fieldnames or ()
                columns |= {name: name for name in names if name.startswith(FRAME_LOSS)}
            for row in lines:
                point = steps.setdefault(int(row["step"]), {})
                point.update(
                    {k: float(v) for k, c in columns.items() if (v := row.get(c)) and _finite(v)}
                )
    points = [{"step": float(step), **steps[step]} for step in sorted(steps) if steps[step]]
    # validation losses are rare: keep all of them
    stride = max(math.ceil(len(points) / MAX_POINTS), 1)
    return tuple(point for i, point in enumerate(points) if i % stride == 0 or "val_loss" in point)


def _finite(text: str) -> bool:
    return math.isfinite(float(text))
