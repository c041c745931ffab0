"""What the tests of paradigms share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def alone_and_sharded(tmp_path: Path, together: Any) -> Callable[[Sequence[str]], list[float]]:
    """`alone_and_sharded(arguments)`: the first training loss of one process, and of two with sharded weights.

    The runs are `1` and `2` in `tmp_path`.
    """

    def losses(arguments: Sequence[str]) -> list[float]:
        found = []
        for count, strategy in ((1, "auto"), (2, "sharded")):
            command = [*arguments, "--trainer.log_every_n_steps=1", f"--run={count}"]
            command.append(f"--trainer.strategy={strategy}")
            codes, outputs = together.run(command, count, tmp_path)
            assert codes == [0] * count, outputs
            with open(tmp_path / f"{count}/logs/version_0/metrics.csv", newline="") as file:
                rows = csv.DictReader(file)
                found.append(float(next(row["train_loss"] for row in rows)))
        return found

    return losses
