"""What starts fast: each command's arguments are parsed without the libraries that only its work needs."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from arvid.cli import COMMANDS, LIGHTNING_COMMANDS, main
from arvid.commands._suites import SUITES
from arvid.data.prepare.facts import DATASETS

SLOW = (
    "cv2",
    "diffusers",
    "einx",
    "lightning",
    "lpips",
    "matplotlib",
    "scipy",
    "tensorboard",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
    "wandb",
)
"""Libraries of which each takes 0.1 CPU seconds to import, or more."""
NOT_NEEDED_TO_TRAIN = {"diffusers", "einx", "lpips", "tensorboard", "wandb"}
"""Of these: what the options of `fit` are not read from. Lightning imports torchmetrics, which imports the others."""

IMAGE_SUITES = tuple(name for name in SUITES if not name.startswith(("vbench", "physics")))
VBENCHES = tuple(name for name in SUITES if name.startswith("vbench"))
HELPS = [
    (),
    *((name,) for name in COMMANDS if name not in LIGHTNING_COMMANDS),
    ("bench", "demo"),
    *(("data", facts.name) for facts in DATASETS),
    *(("evaluate", suite) for suite in SUITES),
    *(("evaluate", s, step) for s in VBENCHES for step in ("sample", "score", "aggregate")),
    ("evaluate", "physics-iq", "sample"),
    *(("evaluate", s, step) for s in IMAGE_SUITES for step in ("sample", "score", "aggregate")),
]

PROGRAM = """
import json, sys
try:
    {statement}
except SystemExit as end:
    assert end.code == 0, end.code
print(json.dumps([name for name in {slow!r} if name in sys.modules]), file=sys.stderr)
"""


def imported_by(statement: str) -> set[str]:
    """Those of SLOW that a new process has imported after a statement."""
    program = PROGRAM.format(statement=statement, slow=SLOW)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def imported_by_command(*arguments: str) -> set[str]:
    return imported_by(f"from arvid.cli import main; main({list(arguments)!r})")


def test_arvid_itself_imports_none() -> None:
    assert imported_by("import arvid") == set()


@pytest.mark.parametrize("command", HELPS, ids=lambda words: " ".join(words) or "arvid")
def test_help_imports_none(command: tuple[str, ...]) -> None:
    expected = {"cv2"} if command[1:2] and command[1] in IMAGE_SUITES else set()
    assert imported_by_command(*command, "--help") <= expected


@pytest.mark.parametrize("command", LIGHTNING_COMMANDS)
def test_help_of_training_imports_what_its_options_are_read_from(command: str) -> None:
    assert imported_by_command(command, "--help").isdisjoint(NOT_NEEDED_TO_TRAIN)


@pytest.mark.parametrize(
    ("own", "expected"), [(True, ["disable", "freeze", "enable"]), (False, [])]
)
def test_garbage_collection_rests_while_a_process_of_arvids_own_imports(
    own: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook the objects of others are left alone."""
    called: list[str] = []
    for name in ("disable", "freeze", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: called.append(name))
    monkeypatch.setattr("sys.argv", ["arvid", "fit", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main(None if own else ["fit", "--help"])
    assert called == expected


def test_names_are_listed_without_importing_the_parts() -> None:
    listing = "from arvid import registry; [registry.names(kind) for kind in registry.KINDS]"
    assert imported_by(listing) == set()


def test_torchvision_is_there_for_whoever_imports_it_first() -> None:
    assert "torchvision" in imported_by("import arvid, torchvision; torchvision.ops.nms")
    assert "torchvision" in imported_by("import arvid, lpips; lpips.LPIPS")
