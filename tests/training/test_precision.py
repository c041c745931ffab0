"""A training in half precision on a CPU that is slower in it than in float32 is warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from arvid.cli import main
from arvid.training import precision


def fake_rates(monkeypatch: pytest.MonkeyPatch, **rates: float) -> None:
    found = {getattr(torch, name): rate for name, rate in rates.items()}
    monkeypatch.setattr(precision, "product_rate", found.__getitem__)


@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true", "16-mixed", "16-true"])
def test_slow_half_precision_is_named_with_its_factor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_rates(monkeypatch, float32=110e9, bfloat16=10e9, float16=10e9)
    message = precision.slow_precision(name)
    assert message is not None
    assert name in message
    assert "11.0 times" in message
    assert "--trainer.precision 32-true" in message


@pytest.mark.parametrize("name", ["32-true", "64-true", "32"])
def test_float32_needs_no_timing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rates(monkeypatch)  # asking for a rate would raise KeyError
    assert precision.slow_precision(name) is None


def test_fast_half_precision_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rates(monkeypatch, float32=100e9, bfloat16=200e9)
    assert precision.slow_precision("bf16-mixed") is None


def test_fit_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fake_rates(monkeypatch, float32=110e9, bfloat16=10e9)
    configs = ["settings/sprites", "paradigms/nova", "sizes/debug"]
    small = ["--data.train.init_args.num_clips=8", "--data.val.init_args.num_clips=8"]
    options = [*small, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    with caplog.at_level(logging.WARNING):
        code = main(
            [
                "fit",
                *(part for name in configs for part in ("--config", name)),
                *options,
                "--trainer.accelerator=cpu",
                "--trainer.precision=bf16-mixed",
                f"--run={tmp_path}",
            ]
        )
    assert code == 0
    assert "11.0 times" in caplog.text
