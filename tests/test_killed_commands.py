"""Commands killed at seeded moments, and given again: what they leave is what an unbroken command leaves.

`arvid fit` has a test of its own, tests/training/test_kills.py.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arvid.cli import main
from arvid.evaluation.records import load_run

Kill = Callable[..., int]
KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CODES = {KILL: {-9}, TERM: {143, -15}, INT: {130, -2}, USR1: {138, -10}}
"""Exit codes; negative ones where the signal came before the command could handle it."""
SLOW = pytest.mark.slow
CONFIGS = [f"--config={name}" for name in ("settings/sprites", "paradigms/nova", "sizes/debug")]


def encode(folder: Path, run: Path) -> list[str]:
    clips = folder / "clips.yaml"
    clips.write_text(
        "data:\n  train: {init_args: {num_clips: 1200}}\n  val: {init_args: {num_clips: 20}}\n"
    )
    return ["encode", *CONFIGS, f"--config={clips}", f"--out={folder / 'out'}"]


def evaluate(folder: Path, run: Path) -> list[str]:
    if not (folder / "run").exists():
        shutil.copytree(run, folder / "run")
        shutil.rmtree(folder / "run/evaluation", ignore_errors=True)
    protocol = folder / "short.yaml"
    protocol.write_text("base: sprites-generation\nnum_clips: 16\nbatch_size: 2\n")
    return ["evaluate", str(folder / "run"), f"--protocol={protocol}"]


def sample(folder: Path, run: Path) -> list[str]:
    given = ["--prompt=a red square", "--count=12", "--batch-size=2"]
    return ["sample", f"--checkpoint={run}", *given, f"--out={folder / 'out'}"]


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files but unfinished ones, whose names begin with a dot."""
    found = (p for p in (folder / "out").rglob("*") if p.is_file() and p.name[0] != ".")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    """What the record holds, but for times."""
    (record,) = load_run(folder / "run")
    clips = tuple(record.path(clip.file).read_bytes() for clip in record.clips)
    return [(record.metrics, record.steps_curve, record.identity, clips)]


COMMANDS: dict[str, tuple[Callable[[Path, Path], list[str]], Callable[[Path], Any]]] = {
    "encode": (encode, files),
    "evaluate": (evaluate, numbers),
    "sample": (sample, files),
}
KILLS = [
    ("encode", 0, (TERM,)),
    ("evaluate", 1, (KILL,)),
    *(
        pytest.param(name, seed, signals, marks=SLOW)
        for name in COMMANDS
        for seed, signals in ((2, (INT, KILL, USR1)), (3, (USR1, TERM, KILL)))
    ),
]


@pytest.mark.parametrize(("name", "seed", "signals"), KILLS)
def test_a_killed_command_goes_on_to_what_an_unbroken_one_gives(
    name: str,
    seed: int,
    signals: tuple[signal.Signals, ...],
    trained_run: Path,
    kill: Kill,
    tmp_path: Path,
) -> None:
    command, outcome = COMMANDS[name]
    draw = random.Random(seed)
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    broken.mkdir()
    unbroken.mkdir()
    for number in signals:
        begun = lambda: any(broken.rglob("*.parts-*")) or (broken / "out").is_dir()  # noqa: E731
        code = kill(command(broken, trained_run), number, after=draw.uniform(0, 1), ready=begun)
        assert code in CODES[number] | {0, 2}  # 2: an encoding that had ended before
    torch.set_num_threads(1)  # as in the killed ones, for the same sums
    assert main(command(broken, trained_run)) in (0, 2)
    assert main(command(unbroken, trained_run)) == 0
    assert outcome(broken) == outcome(unbroken)
