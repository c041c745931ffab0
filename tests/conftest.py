"""Shared fixtures: real data beside the checkout, a small trained run, global state put back after each test."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import arvid  # noqa: F401  # makes torchvision importable beside a torch of another build
from arvid.nn.causal_conv import Backbone

SEED = 0

GLOBAL_STATE: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        torch.get_deterministic_debug_mode,  # of the deterministic algorithms: off, warn, error
        torch.set_deterministic_debug_mode,
    ),
]
"""How to read and to write what holds for the whole process."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos and weights beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).parents[1] / ".." / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real videos ../shared, which is not here")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """A causal network with strides 4x4x4, for tests of tokenizers."""
    return Backbone(
        base=4,
        multipliers=(1, 1, 2),
        strides=((2, 2, 2), (2, 2, 2)),
        num_units=1,
        num_mid_units=0,
        num_groups=2,
    )


@pytest.fixture
def video() -> torch.Tensor:
    """Two random clips (2, 3, 9, 8, 8) in [-1, 1], for tests of tokenizers."""
    return torch.rand(2, 3, 9, 8, 8) * 2 - 1


@contextmanager
def seeded_state() -> Iterator[None]:
    """Seeds the generators of Python, NumPy and torch, and puts all global state back afterwards."""
    environment = dict(os.environ)  # Lightning keeps its seed there
    kept = [(put, get()) for get, put in GLOBAL_STATE]
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # what the code under test may draw from
    torch.manual_seed(SEED)
    try:
        yield
    finally:
        for put, value in kept:
            put(value)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Every test begins from the same state, whichever tests ran before it, and leaves no trace in it."""
    with seeded_state():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """A fixture that several tests share is made before `global_state` of the first: it is seeded by itself."""
    if fixturedef.scope == "function":
        return (yield)
    with seeded_state():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """The imports of all tests make 800,000 objects and almost no garbage: no garbage collection looks through them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


Rounding = Callable[..., dict[str, float]]


@pytest.fixture(scope="session")
def rounding() -> Rounding:
    """`rounding(expected, terms)`: tolerances for `assert_close` between two ways to compute the same sums.

    The order of a sum differs between instruction sets, numbers of threads and batch sizes. Each of its n terms
    rounds the sum so far by up to half of the dtype's eps, at random: together eps / 2 * sqrt(n / 3) of its
    magnitude. Two such sums differ by sqrt(2) of that, and the largest of 10^5 differences has 4.4 deviations.
    That makes 1.8 * eps * sqrt(n), here doubled.

    Arguments of the function:
        expected: the result; its largest value is the magnitude of the sums. Integers must be equal.
        terms: number of terms of the sum, or the network whose layers sum up one after another. For products in
            bf16 or fp16 this is 1: they are summed in float32, and only what goes in and comes out is rounded.
        dtype: what was computed in, where it is not that of `expected`.
    """

    def tolerances(
        expected: torch.Tensor, terms: int | nn.Module, dtype: torch.dtype | None = None
    ) -> dict[str, float]:
        if not expected.is_floating_point():
            return {"rtol": 0, "atol": 0}
        if isinstance(terms, nn.Module):
            terms = sum(w[:1].numel() for w in terms.parameters() if w.ndim > 1)
        magnitude = expected.detach().abs().max().item()
        eps = torch.finfo(dtype or expected.dtype).eps
        return {"rtol": 0, "atol": 4 * eps * math.sqrt(terms) * magnitude}

    return tolerances


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test session's own."""
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A next-block run of three steps on sprites of 17 frames, as `arvid fit` leaves it."""
    from arvid.cli import main

    run = tmp_path_factory.mktemp("runs") / "next_block"
    arguments = [
        "--config=settings/sprites",
        "--config=paradigms/next_block",
        "--config=sizes/debug",
        "--data.train.init_args.num_clips=8",
        "--data.val.init_args.num_clips=16",
        "--data.train.init_args.num_frames=17",
        "--data.val.init_args.num_frames=17",
        "--data.clips_per_step=4",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=3",
        "--trainer.val_check_interval=3",
        "--trainer.log_every_n_steps=1",
        f"--run={run}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARVID_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["fit", *arguments]) == 0
    return run


Kill = Callable[..., int]


@pytest.fixture(scope="session")
def slurm() -> dict[str, str]:
    """Variables of a job of SLURM with one task."""
    places = {f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")}
    return {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", **places}


@pytest.fixture(scope="session")
def kill(slurm: dict[str, str]) -> Kill:
    """`kill(arguments, number, after=seconds, ready=condition)`: exit code of `arvid` in a process that gets a signal.

    The signal comes `after` seconds after `ready()` first holds, and not at all if the command has ended by then. It
    comes within a job of SLURM if it is SIGUSR1. What a killed process was at depends on the machine's speed: a test
    must hold whatever it was.
    """

    def run(
        arguments: list[str],
        number: int,
        *,
        after: float = 0.0,
        ready: Callable[[], bool] = lambda: True,
    ) -> int:
        job = slurm if number == signal.SIGUSR1 else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **job}
        process = subprocess.Popen([sys.executable, "-m", "arvid", *arguments], env=environment)
        try:
            while process.poll() is None and not ready():
                time.sleep(0.01)
            time.sleep(after)
            process.send_signal(number)  # which does nothing to one that has ended
            return process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()

    return run


class Together:
    """Runs a command of arvid in several processes that share its work."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder
        self.server = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "together.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # else it could not fork
            text=True,
        )

    def run(
        self, arguments: list[str], count: int, folder: Path, *, by: str = "torchrun", **more: str
    ) -> tuple[list[int], list[str]]:
        """Exit codes and output of `count` processes, started in a folder `by` torchrun or srun.

        `more` are variables of their environments.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        logs = [str(self.logs / f"{rank}.log") for rank in range(count)]
        cache = {"ARVID_CACHE": os.environ["ARVID_CACHE"]}
        environments = [cache | _VARIABLES[by](rank, count) | more for rank in range(count)]
        job = {
            "arguments": arguments,
            "folder": str(folder),
            "processes": list(zip(environments, logs, strict=True)),
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        codes: list[int] = json.loads(self.server.stdout.readline())
        return codes, [Path(log).read_text() for log in logs]

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


class Web:
    """A server on this machine: files by name, of which a request may want the end."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        """The range of each request, in order."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                web.asked.append(asked)
                content = web.files.get(self.path.rpartition("/")[2])
                if content is None:
                    return self.send_error(404)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                self.send_response(206 if asked else 200)
                if asked:
                    end, size = len(content) - 1, len(content)
                    self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:])

            def log_message(self, *_: object) -> None:
                """Nothing: the test's output is for the test."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, name: str, content: bytes | None = None) -> str:
        """Address of a file with this content; without one there is no such file."""
        if content is not None:
            self.files[name] = content
        return f"http://127.0.0.1:{self.server.server_port}/x/{name}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of published files. Downloads reach it even where HF_HUB_OFFLINE=1 is set for the tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    web = Web()
    with web.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield web
        server.shutdown()


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nothing listens to."""
    return _free_port()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _torchrun(rank: int, count: int) -> dict[str, str]:
    if count == 1:
        return {}
    if rank == 0:
        os.environ["ARVID_TEST_PORT"] = str(_free_port())
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": os.environ["ARVID_TEST_PORT"],
        "TORCHELASTIC_RUN_ID": "test",
    }


def _srun(rank: int, count: int) -> dict[str, str]:
    if rank == 0:
        os.environ["ARVID_TEST_PORT"] = str(_free_port())
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(count),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": os.environ["ARVID_TEST_PORT"],
    }


_VARIABLES = {"torchrun": _torchrun, "srun": _srun}


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """`together.run(arguments, count, folder)` runs a command in several processes."""
    found = Together(tmp_path_factory.mktemp("together"))
    yield found
    found.close()
