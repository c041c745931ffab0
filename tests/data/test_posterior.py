"""Training on draws from a tokenizer's posterior: stored once, drawn anew at each step, means for validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.cli import main
from arvid.contracts import UserError, VideoTokenizer
from arvid.data.collate import normalise
from arvid.data.sprites import Sprites
from arvid.data.token_cache import cache_folder, encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import GeneratorModule

CLIPS = Sprites(3, num_frames=17, size=32)
FIT = [
    "fit",
    "--config=settings/sprites",
    "--config=sizes/debug",
    "--data.clips_per_step=4",
    "--data.train.init_args.num_clips=6",
    "--data.val.init_args.num_clips=4",
    "--data.posterior=true",
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.accelerator=cpu",
]


@pytest.fixture
def vae() -> VideoTokenizer:
    return load_tokenizer("sprites-vae3d")


def test_shards_hold_means_and_standard_deviations(
    tmp_path: Path, vae: VideoTokenizer, rounding: Callable[..., Any]
) -> None:
    encode_dataset(vae, "hash", CLIPS, tmp_path, posterior=True)
    shards = TokenShards(str(tmp_path))
    assert shards.manifest.posterior
    with torch.no_grad():
        mean, spread = vae.encode_posterior(normalise(CLIPS[1].video)[None])
    example = shards.example(1)
    torch.testing.assert_close(example["tokens"], mean[0], **rounding(mean, vae))
    torch.testing.assert_close(example["spread"], spread[0], atol=1e-6, rtol=2e-3)  # float16
    assert example["spread"].dtype == torch.float32
    assert example["spread"].min() > 0


def test_the_cache_keeps_both_kinds_apart(own_cache: Path) -> None:
    assert cache_folder("a", CLIPS) != cache_folder("a", CLIPS, posterior=True)


def test_each_training_step_draws_anew_and_validation_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "val": []}

    def watch(
        module: GeneratorModule, batch: dict[str, Tensor], *, draw: bool = False
    ) -> dict[str, Tensor]:
        paradigm_loss = module.paradigm.loss

        def loss(tokens: Tensor, condition: object) -> dict[str, Tensor]:
            known = batch.get("spread")
            away = tokens - batch["tokens"]
            seen["train" if draw else "val"].append(away if known is None else away / known)
            return paradigm_loss(tokens, condition)

        with monkeypatch.context() as patch:
            patch.setattr(module.paradigm, "loss", loss)
            return losses(module, batch, draw=draw)

    losses = GeneratorModule.losses
    monkeypatch.setattr(GeneratorModule, "losses", watch)
    assert main([*FIT, "--config=paradigms/nova", f"--run={tmp_path}"]) == 0
    noise = torch.stack(seen["train"])
    assert len(noise) == 3
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert not torch.equal(noise[0], noise[1])
    assert all(away.abs().max() == 0 for away in seen["val"])


def test_ids_have_no_posterior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--config=paradigms/next_block", f"--run={tmp_path}"]) == 2
    assert "MagvitFSQ has no posterior to sample from" in capsys.readouterr().err


def test_shards_without_standard_deviations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vae: VideoTokenizer
) -> None:
    from arvid.training.export import fingerprint

    for part, clips in (("train", 6), ("val", 4)):
        encode_dataset(
            vae, fingerprint(vae), Sprites(clips, num_frames=17, size=32), tmp_path / part
        )
    given = [
        argument
        for part in ("train", "val")
        for argument in (
            f"--data.{part}=arvid.data.token_shards.TokenShards",
            f"--data.{part}.init_args.path={tmp_path / part}",
        )
    ]
    fit = [a for a in FIT if "num_clips" not in a]
    assert main([*fit, *given, "--config=paradigms/nova", f"--run={tmp_path / 'run'}"]) == 2
    assert "tokens without their standard deviations" in capsys.readouterr().err


def test_a_folder_of_means_is_not_filled_with_draws(
    tmp_path: Path, corners: Callable[..., VideoTokenizer]
) -> None:
    encode_dataset(corners(), "hash", CLIPS, tmp_path)
    with pytest.raises(UserError, match="posterior is False there, True here"):
        encode_dataset(corners(), "hash", CLIPS, tmp_path, posterior=True)
