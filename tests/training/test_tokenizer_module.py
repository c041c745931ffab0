"""Training a tokenizer: a few steps lower the loss, latents get measured, the schedule and groups are right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.data.sprites import Sprites
from arvid.data.video import read_video
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import load_tokenizer
from arvid.training.finite import SkipNonfinite
from arvid.training.optimizer import OptimizerConfig, build_optimizer
from arvid.training.tokenizer_module import Images, TokenizerModule, psnr, random_frames

TINY = Backbone(
    base=4, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=0, num_groups=2
)


def loader() -> DataLoader[dict[str, torch.Tensor]]:
    clips = [torch.from_numpy(c.video) for c in Sprites(8, num_frames=5, size=16)]
    batch = [{"video": clip.permute(3, 0, 1, 2).float() / 127.5 - 1} for clip in clips]
    return DataLoader(batch, batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        check_val_every_n_epoch=max(steps // 2, 1),  # an epoch has two steps
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize(
    "tokenizer",
    [
        VAE3D(backbone=TINY, latent_channels=2),
        MagvitFSQ(backbone=TINY, levels=(5, 5)),
    ],
    ids=["vae3d", "magvit_fsq"],
)
def test_training_lowers_the_loss_and_the_checkpoint_loads(
    tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    module = TokenizerModule(tokenizer, OptimizerConfig(lr=5e-3, warmup_steps=2))
    data = loader()
    with torch.no_grad():
        video = next(iter(data))["video"]
        before = (tokenizer.training_losses(video)[0] - video).abs().mean()
        psnr_before = psnr(tokenizer.decode(tokenizer.encode(video)), video).mean()
    fitting = trainer(tmp_path, 24)
    fitting.fit(module, data, data)
    after = fitting.callback_metrics
    assert after["val_reconstruction"] < 0.8 * before
    assert after["val_psnr"] > psnr_before + 1

    fitting.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_tokenizer(tmp_path / "last.ckpt")
    tokenizer.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(video), tokenizer.encode(video))
        torch.testing.assert_close(
            loaded.decode(loaded.encode(video)), tokenizer.decode(tokenizer.encode(video))
        )


def test_image_steps_come_first(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(MagvitFSQ):
        def training_losses(
            self, video: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            seen.append(tuple(video.shape))
            return super().training_losses(video)

    images = Images(first_steps=1, share=0.5, per_clip=2)
    module = TokenizerModule(Watched(backbone=TINY, levels=(5, 5)), images=images)
    trainer(tmp_path, 3).fit(module, loader())
    assert seen == [(8, 3, 1, 16, 16), (4, 3, 5, 16, 16), (8, 3, 1, 16, 16)]


def test_single_frames_have_their_share_of_the_steps() -> None:
    images = Images(first_steps=10, share=0.3)
    steps = [images.at(step) for step in range(1010)]
    assert all(steps[:10])
    assert sum(steps[10:]) == 300
    assert max(len(run) for run in "".join("ic"[not x] for x in steps[10:]).split("i")) == 3
    assert not any(Images().at(step) for step in range(100))
    with pytest.raises(UserError, match=r"images\.share must be 0 to 1"):
        Images(share=1.1)


def test_random_frames_are_frames_of_their_clips() -> None:
    video = torch.arange(2 * 5).view(2, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    frames = random_frames(video, 40)
    assert frames.shape == (80, 3, 1, 4, 4)
    drawn = frames[:, 0, 0, 0, 0].view(2, 40)
    assert set(drawn[0].tolist()) == {0, 1, 2, 3, 4}
    assert set(drawn[1].tolist()) == {5, 6, 7, 8, 9}
    assert not torch.equal(drawn[0] + 5, drawn[1])  # clips draw their frames independently


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    module = TokenizerModule(MagvitFSQ(backbone=TINY, levels=(5, 5)))
    with torch.no_grad():
        module.tokenizer.decoder.layers[-1].conv.bias.fill_(math.nan)
    fitting = trainer(tmp_path, 2)
    fitting.callbacks.append(SkipNonfinite(patience=2))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="train loss is not finite") as caught:
        fitting.fit(module, loader())
    assert "The weights are not finite either (tokenizer.decoder.layers" in str(caught.value)


def test_psnr_of_known_errors() -> None:
    video = torch.zeros(2, 3, 1, 4, 4)
    shifted = video.clone()
    shifted[0] += 0.2  # a tenth of the range of 2
    torch.testing.assert_close(psnr(shifted, video), torch.tensor([20.0, 100.0]))


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1, 1)]
)
def test_schedules(schedule: str, middle: float, end: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=9, schedule=schedule)  # type: ignore[arg-type]
    assert config.factor(0, 109) == pytest.approx(0.1)
    assert config.factor(9, 109) == pytest.approx(1.0)
    assert config.factor(59, 109) == pytest.approx(middle)
    assert config.factor(109, 109) == pytest.approx(end, abs=1e-9)


def test_only_matrices_and_kernels_decay() -> None:
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "norm": nn.LayerNorm(4),
            "embedding": nn.Embedding(5, 4),
        }
    )
    module["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    config = OptimizerConfig(lr=1e-3, weight_decay=0.1)
    built = build_optimizer(module, config, max_steps=10)
    decayed, others = built["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 4
    assert built["lr_scheduler"]["interval"] == "step"


def test_swish_slopes_do_not_decay() -> None:
    tokenizer = MagvitFSQ(backbone=TINY, levels=(5, 5))
    built = build_optimizer(tokenizer, OptimizerConfig(lr=1e-3), max_steps=10)
    decayed = built["optimizer"].param_groups[0]["params"]
    assert {p.ndim for p in decayed} == {5}


def test_a_schedule_without_an_end() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(UserError, match="max_steps"):
        build_optimizer(module, OptimizerConfig(lr=1e-3), max_steps=-1)
    constant = OptimizerConfig(lr=1e-3, schedule="constant")
    build_optimizer(module, constant, max_steps=-1)


def test_a_warm_up_by_share_goes_with_the_length() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=0.1, schedule="linear")
    assert config.factor(9, 100) == pytest.approx(10 / 11)
    assert config.factor(10, 100) == 1
    assert config.factor(99, 1000) == pytest.approx(100 / 101)
    endless = OptimizerConfig(lr=1.0, warmup_steps=0.1, schedule="constant")
    with pytest.raises(UserError, match="warm-up in steps"):
        build_optimizer(nn.Linear(2, 2), endless, max_steps=math.inf)


def test_impossible_options() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr must be above 0, not 0"):
        OptimizerConfig(lr=0)


def test_validation_shows_reconstructions_and_the_use_of_codes(tmp_path: Path) -> None:
    module = TokenizerModule(MagvitFSQ(backbone=TINY, levels=(5, 5)), OptimizerConfig(lr=1e-3))
    fitting = trainer(tmp_path, 2)
    data = loader()
    fitting.fit(module, data, data)
    metrics = fitting.callback_metrics
    assert 1 / 25 <= metrics["val_codebook_share"] <= 1
    assert 1 <= metrics["val_codebook_perplexity"] <= 25 * metrics["val_codebook_share"] + 1e-4
    folder = tmp_path / "reconstructions"
    assert sorted(p.name for p in folder.iterdir()) == ["step-0000002.mp4", "step-0000002.png"]
    # 4 clips of 16x16 side by side with gaps of 2, above their reconstructions
    assert read_video(folder / "step-0000002.mp4").frames.shape == (5, 34, 70, 3)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    tokenizer = MagvitFSQ(backbone=TINY, levels=(5, 5))
    video = next(iter(loader()))["video"]

    def gradients(**options: bool) -> list[torch.Tensor]:
        module = TokenizerModule(tokenizer, **options)  # type: ignore[arg-type]
        module.zero_grad()
        module._losses(video)[1]["loss"].backward()
        return [p.grad.clone() for p in tokenizer.parameters() if p.grad is not None]

    plain, saving = gradients(), gradients(gradient_checkpointing=True)
    assert tokenizer.encoder.gradient_checkpointing
    assert tokenizer.decoder.gradient_checkpointing
    torch.testing.assert_close(plain, saving)


def test_gradient_checkpointing_of_a_network_without_the_switch() -> None:
    with pytest.raises(UserError, match="no networks with gradient checkpointing"):
        TokenizerModule(Plain(), gradient_checkpointing=True)


class Plain(VideoTokenizer):
    """As small as a tokenizer can be."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec("continuous", 3, (1, 1, 1), causal=True)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video.movedim(1, -1)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.scale * tokens.movedim(-1, 1)).clamp(-1, 1)
