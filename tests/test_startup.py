"""What starts fast: each command's arguments are parsed without the libraries that only its work needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arvid.cli import COMMANDS, LIGHTNING_COMMANDS
from arvid.commands._suites import SUITES

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
NEEDED_TO_TRAIN = {"cv2", "lightning", "matplotlib", "torch", "torchmetrics"}
"""Of these: what the options of `fit` are read from. matplotlib is torchmetrics' own."""

IMAGE_SUITES = tuple(name for name in SUITES if name != "vbench")
HELPS = [
    (),
    *((name,) for name in COMMANDS if name not in LIGHTNING_COMMANDS),
    *(("evaluate", suite) for suite in SUITES),
    *(("evaluate", "vbench", step) for step in ("sample", "score", "aggregate")),
    *(("evaluate", s, step) for s in IMAGE_SUITES for step in ("sample", "score", "aggregate")),
]

FIT = [
    *("--config", "settings/sprites", "--config", "paradigms/nova", "--config", "sizes/debug"),
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"),
    *("--data.train.init_args.num_clips", "4", "--data.val.init_args.num_clips", "4"),
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
    assert imported_by_command(command, "--help") <= NEEDED_TO_TRAIN


def test_garbage_is_collected_while_training(tmp_path: Path) -> None:
    """Each step of the program `arvid fit` asks whether the collector, which is off while it imports, is on."""
    program = (
        "import gc, sys; from arvid.cli import main; from arvid.training.callbacks import StepBar;"
        "StepBar.on_train_batch_end = lambda *_, **__: print('collected', gc.isenabled());"
        f"sys.argv = ['arvid', 'fit', *{FIT!r}, '--run', {str(tmp_path)!r}];"
        "off = []; gc.disable = lambda disable=gc.disable: (off.append(True), disable());"
        "sys.exit(main() or off != [True])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "collected True" in done.stdout


def test_names_are_listed_without_importing_the_parts() -> None:
    listing = "from arvid import registry; [registry.names(kind) for kind in registry.KINDS]"
    assert imported_by(listing) == set()


def test_torchvision_is_there_for_whoever_imports_it_first() -> None:
    assert "torchvision" in imported_by("import arvid, torchvision; torchvision.ops.nms")
    assert "torchvision" in imported_by("import arvid, lpips; lpips.LPIPS")


def test_every_name_of_torchmetrics_is_found() -> None:
    found = imported_by(
        "import arvid, torchmetrics, torchmetrics.functional as functional;"
        "assert torchmetrics.metric.Metric is torchmetrics.Metric;"
        "assert 'transformers' not in sys.modules and 'torchvision' not in sys.modules;"
        "assert torchmetrics.image and torchmetrics.functional is functional;"
        "[getattr(module, name) for module in (torchmetrics, functional) for name in module.__all__];"
        "assert torchmetrics.functional.accuracy.__name__ == 'accuracy';"
        "assert not hasattr(torchmetrics, 'nothing')"
    )
    assert {"torchmetrics", "torchvision"} <= found


def test_no_module_of_torchmetrics_hides_a_name_that_is_imported_later() -> None:
    """Where they have one name, importing the module would set the name to it."""
    found = imported_by(
        "import arvid, importlib, pkgutil; from arvid._torchmetrics import _LATER, PACKAGES;"
        "packages = [importlib.import_module(name) for name in PACKAGES];"
        "modules = [{m.name for m in pkgutil.iter_modules(p.__path__)} for p in packages];"
        "later = [{n for n, (s, _) in vars(p)[_LATER].items() if s != p.__name__} for p in packages];"
        "assert all(later) and not any(m & n for m, n in zip(modules, later)), (modules, later)"
    )
    assert "torchmetrics" in found
