"""Shared fixtures: real data beside the checkout, a small trained run, global state put back after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import arvid  # noqa: F401  # makes torchvision importable beside a torch of another build


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos and weights beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).parents[1] / ".." / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real videos ../shared, which is not here")
    return folder.resolve()


@pytest.fixture(autouse=True)
def restore_global_state() -> Iterator[None]:
    """Undo what a test did to the random state and the default dtype."""
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)


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
        "--data.batch_size=4",
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
