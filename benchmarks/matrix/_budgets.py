"""Makes the budgets of all rows equal: training FLOPs by the number of steps, parameters by the width."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from arvid.benchmarks.matrix._rows import MODEL, MatrixRow
from arvid.experiments.equal import cost, size_for, steps_for
from arvid.files import sha256_json, write_json

Equal = Literal["steps", "flops", "parameters"]


def with_equal(
    equal: Equal, rows: Sequence[MatrixRow], options: Sequence[str], out: Path
) -> list[MatrixRow]:
    """The rows with options that give all rows of a size the budget of the first of them.

    Counting takes seconds per row, so the options are kept in OUT/budgets.json. Raises UserError if a budget cannot be
    reached.
    """
    if equal == "steps":
        return list(rows)
    kept = _Kept(out / "budgets.json", [equal, *options])
    targets: dict[str, float] = {}
    for row in rows:
        if row.size not in targets:
            found = kept.get(f"target {row.name}", lambda row=row: _target(equal, row, options))
            targets[row.size] = found
    return [
        dataclasses.replace(
            row,
            extra=tuple(
                kept.get(
                    f"{row.cell} {row.size} {targets[row.size]}",
                    lambda row=row: _options(equal, row, options, targets[row.size]),
                )
            ),
        )
        for row in rows
    ]


class _Kept:
    """Counted values in a file, for one question."""

    def __init__(self, path: Path, question: Sequence[str]) -> None:
        self.path, self.key = path, sha256_json(list(question))[:16]
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.known: dict[str, Any] = known.get(self.key, {})
        self.others = {key: value for key, value in known.items() if key != self.key}

    def get(self, name: str, count: Any) -> Any:
        """The value of a name; counted the first time."""
        if name not in self.known:
            self.known[name] = count()
            write_json(self.path, {**self.others, self.key: self.known})
        return self.known[name]


def _target(equal: Equal, row: MatrixRow, options: Sequence[str]) -> float:
    found = cost(row.configs, [*row.options, *options])
    return found.flops if equal == "flops" else found.parameters


def _options(equal: Equal, row: MatrixRow, options: Sequence[str], target: float) -> list[str]:
    given = [*row.options, *options]
    if equal == "flops":
        steps = steps_for(target, cost(row.configs, given))
        print(f"{row.cell}, {row.size}: {steps} steps", flush=True)
        return [
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={max(steps // 4, 1)}",
        ]
    size = size_for(int(target), row.configs, given)
    print(f"{row.cell}, {row.size}: width {size.dim}, depth {size.depth}", flush=True)
    named = dataclasses.asdict(size) | {"name": row.size}
    return [f"{MODEL}.size.{key}={value}" for key, value in named.items()]
