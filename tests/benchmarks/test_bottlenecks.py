"""The benchmark of bottlenecks: equal bits, a row for each, rates of the Gaussian."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arvid.cli import main
from arvid.experiments.side_by_side import Job

SCRIPT = "tokenizers/bottlenecks"
TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--data.clips_per_step=2",
    "--data.batch_size=2",
    "--data.train.init_args.num_clips=4",
    "--data.val.init_args.num_clips=2",
    "--model.init_args.images.first_steps=0",
]


def test_fsq_has_as_many_ids_as_the_others(script: ModuleType) -> None:
    for bits in range(2, 19):
        levels = script.fsq_levels(bits)
        assert math.prod(levels) == 2**bits
        assert set(levels) <= {4, 8}
        assert len(levels) == math.ceil(bits / 3)


def test_every_bottleneck_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_here(jobs: Sequence[Job], logs: Path) -> None:
        for job in jobs:
            assert main(list(job.arguments)) == 0

    monkeypatch.setattr("arvid.experiments.variants.run_side_by_side", train_here)
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "nothing"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    out = tmp_path / "out"
    given = ["--bits=6", "--num-clips=3", f"--out={out}", *TINY]
    assert main(["bench", SCRIPT, *given]) == 0
    page = (out / "table.md").read_text()
    assert "> No LPIPS: " in page
    result = json.loads((out / "results.json").read_text())
    assert list(result["costs"]) == ["FSQ", "LFQ", "BSQ", "VQ", "Gaussian"]
    bits = {name: found["bits_per_token"] for name, found in result["costs"].items()}
    assert bits == {"FSQ": 6, "LFQ": 6, "BSQ": 6, "VQ": 6, "Gaussian": None}
    assert result["costs"]["LFQ"]["bits_per_pixel"] == pytest.approx(6 * 320 / (17 * 32 * 32))
    assert result["kl_bits_per_token"]["Gaussian"] > 0
    assert all(seconds > 0 for seconds in result["training_seconds"].values())
    for metrics in result["metrics"].values():
        assert {m["name"] for m in metrics} == {"psnr", "ssim"}
    assert result["lpips"] == {}
    assert (out / "originals-and-reconstructions.png").is_file()


def test_the_gaussians_rate_is_its_divergence_in_bits(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posteriors N(3, 1) in two channels: 3²/2 nats each."""
    options = script.argparse.Namespace(data=None, num_clips=2)
    real = script.held_out(options)

    class Posterior:
        def posterior(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = torch.full((len(video), 2, 5, 4, 4), 3.0)
            return mean, torch.zeros_like(mean)

    assert script.gaussian_bits(Posterior(), real) == pytest.approx(9 / math.log(2))


def test_lpips_takes_the_given_weights(script: ModuleType, shared: Path) -> None:
    weights = shared / "weights/lpips_squeeze/squeezenet1_1_features.safetensors"
    if not weights.is_file():
        pytest.skip("LPIPS's weights are not there")
    real = script.held_out(script.argparse.Namespace(data=None, num_clips=2))

    class Inverse:
        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return -video

        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

    class Copy(Inverse):
        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return video

    found, notes = script.lpips({"copy": Copy(), "inverse": Inverse()}, real, weights)
    assert found["copy"] == pytest.approx(0, abs=1e-6)
    assert found["inverse"] > 0.1
    assert notes == []
