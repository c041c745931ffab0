"""Five hundred odd command lines: each ends by itself, in a documented way, and never with a traceback."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

SECONDS = 120
EVERY = 13
"""Each 13th line belongs to `make test`, all to `make test-all`."""


def _lines() -> list[tuple[str, ...]]:
    """From the file beside this one, which is no package's."""
    path = Path(__file__).with_name("odd_command_lines.py")
    spec = importlib.util.spec_from_file_location("odd_command_lines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines: list[tuple[str, ...]] = module.odd_command_lines()
    return lines


LINES = [
    pytest.param(line, id=f"{i:03d}", marks=() if i % EVERY == 0 else pytest.mark.slow)
    for i, line in enumerate(_lines())
]

PROTOCOL = """
summary: own
task: generation
metrics: [flicker]
num_clips: 2
clip: {num_frames: 9, size: 32}
"""
SUITE = '[{"prompt_en": "a cat", "dimension": ["subject_consistency"]}]'
FEW = "data: {train: {init_args: {num_clips: 4}}, val: {init_args: {num_clips: 4}}}\n"


@pytest.fixture(scope="session")
def nova_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NOVA on continuous tokens after a step."""
    run = tmp_path_factory.mktemp("runs") / "nova"
    configs = ("settings/sprites", "paradigms/nova", "sizes/debug")
    steps = ("--trainer.max_steps=1", "--trainer.accelerator=cpu", "--data.clips_per_step=2")
    clips = [f"--data.{part}.init_args.num_clips=4" for part in ("train", "val")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARVID_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        given = [f"--config={name}" for name in configs]
        assert main(["fit", *given, *steps, *clips, f"--run={run}"]) == 0
    return run


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files and folders that the lines name, and a working folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    contents = {"few.yaml": FEW, "protocol.yaml": PROTOCOL, "suite.json": SUITE, "empty": ""}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "junk").write_bytes(bytes(range(256)) * 8)
    for i in range(2):
        write_video(tmp_path / f"videos/{i}.mp4", Sprites(2, num_frames=9)[i].video, 8)
    files = {name.partition(".")[0]: str(tmp_path / name) for name in (*contents, "junk", "videos")}
    return {**files, "tmp": str(work), "video": str(tmp_path / "videos/0.mp4")}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def exit_code(line: list[str]) -> int:
    """Of a command line, run in this process. Whatever else a command may raise is a traceback to its user."""
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with time_limit(SECONDS):
            return main(line)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.signal(signal.SIGTERM, terminated)


@pytest.mark.parametrize("line", LINES)
def test_an_odd_command_line_ends_as_documented(
    line: tuple[str, ...],
    places: dict[str, str],
    trained_run: Path,
    nova_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = sum(map(len, line)) % 2
    run, paradigm = ((trained_run, "next_block"), (nova_run, "nova"))[number]
    shutil.copytree(run, tmp_path / "run")
    places = {**places, "run": str(tmp_path / "run"), "paradigm": paradigm}
    given = [word.format(**places) for word in line]
    code = exit_code(given)
    error = capsys.readouterr().err.replace("\r", "\n")  # of progress bars
    assert "Traceback" not in error
    finds_faults = given[0] == "doctor" or given[:2] == ["data", "check"]
    assert code in ((0, 1, 2) if finds_faults else (0, 2))
    if code == 2:
        assert re.match(r"[\w ./-]+: error: \S", error.strip().splitlines()[-1]), error
