"""vae3d: token layout, causality through the bottleneck, losses and the scaling of its tokens."""

from __future__ import annotations

import math

import pytest
import torch

from arvid.contracts import TokenGrid, UserError
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.vae3d import VAE3D


@pytest.fixture
def vae(tiny_backbone: Backbone) -> VAE3D:
    return VAE3D(backbone=tiny_backbone, latent_channels=3, kl_weight=0.1).eval()


def test_spec_and_shapes(vae: VAE3D, video: torch.Tensor) -> None:
    assert vae.spec.type == "continuous"
    assert (vae.spec.size, vae.spec.strides, vae.spec.causal) == (3, (4, 4, 4), True)
    assert vae.spec.grid(9, 8, 8) == TokenGrid(3, 2, 2)
    tokens = vae.encode(video)
    assert tokens.shape == (2, 3, 2, 2, 3)
    reconstruction = vae.decode(tokens * 100)
    assert reconstruction.shape == video.shape
    assert reconstruction.abs().max() <= 1


def test_an_image_is_a_video_of_one_frame(vae: VAE3D, video: torch.Tensor) -> None:
    with torch.no_grad():
        tokens = vae.encode(video[:, :, :1])
        torch.testing.assert_close(tokens, vae.encode(video)[:, :1], atol=1e-5, rtol=1e-5)
        assert vae.decode(tokens).shape == (2, 3, 1, 8, 8)


def test_prefixes_agree(vae: VAE3D, video: torch.Tensor) -> None:
    with torch.no_grad():
        tokens = vae.encode(video)
        prefix = vae.encode(video[:, :, :5])
        torch.testing.assert_close(prefix, tokens[:, :2], atol=1e-5, rtol=1e-5)
        frames = vae.decode(tokens)
        torch.testing.assert_close(
            vae.decode(tokens[:, :2]), frames[:, :, :5], atol=1e-5, rtol=1e-5
        )


def test_losses(vae: VAE3D, video: torch.Tensor) -> None:
    reconstruction, losses = vae.training_losses(video)
    assert reconstruction.shape == video.shape
    assert losses["loss"].item() == pytest.approx(0.1 * losses["kl"].item(), rel=1e-5)
    (reconstruction.square().mean() + losses["loss"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_kl_is_that_of_two_gaussians(vae: VAE3D, video: torch.Tensor) -> None:
    """With a constant posterior N(2, e²) the divergence from N(0, 1) is known in closed form."""
    head = vae.encoder.layers[-1].conv
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([2.0] * 3 + [2.0] * 3))
    expected = 0.5 * (4 + math.exp(2) - 1 - 2)
    assert vae.training_losses(video)[1]["kl"].item() == pytest.approx(expected, rel=1e-5)


def test_log_variance_is_clamped(vae: VAE3D, video: torch.Tensor) -> None:
    head = vae.encoder.layers[-1].conv
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0] * 3 + [-100.0, 100.0, 0.0]))
    _, log_variance = vae.posterior(video)
    assert log_variance.min().item() == -30
    assert log_variance.max().item() == 20


def test_the_spread_of_tokens_is_in_their_scale(vae: VAE3D, video: torch.Tensor) -> None:
    vae.latent_shift.copy_(torch.tensor([1.0, 2.0, 3.0]))
    vae.latent_scale.copy_(torch.tensor([0.5, 2.0, 4.0]))
    tokens, spread = vae.encode_posterior(video)
    torch.testing.assert_close(tokens, vae.encode(video))
    _, log_variance = vae.posterior(video)
    for channel, scale in enumerate((0.5, 2.0, 4.0)):
        expected = (log_variance[:, channel] / 2).exp() / scale
        torch.testing.assert_close(spread[..., channel], expected)


def test_measured_latents_have_unit_variance_and_the_video_stays(
    vae: VAE3D, video: torch.Tensor
) -> None:
    other = (
        torch.rand(2, 3, 9, 8, 8) * 0.2
    )  # far from the first batch: the variance between them counts
    with torch.no_grad():
        reconstruction = vae.decode(vae.encode(video))
        vae.train()
        for clip in (video, other):
            vae.training_losses(clip)
        vae.eval()
        tokens = torch.cat([vae.encode(video), vae.encode(other)]).flatten(0, 3)
        torch.testing.assert_close(
            vae.decode(vae.encode(video)), reconstruction, atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(tokens.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)


def test_training_keeps_measuring(vae: VAE3D, video: torch.Tensor) -> None:
    vae.training_losses(video)
    assert vae.latent_scale.tolist() == [1.0] * 3  # not in eval mode
    vae.train()
    vae.training_losses(video)
    once = vae.latent_shift.clone(), vae.latent_scale.clone()
    for _ in range(2):
        vae.training_losses(video)
    torch.testing.assert_close(once, (vae.latent_shift, vae.latent_scale))


def test_the_running_statistics_forget(vae: VAE3D) -> None:
    """Far into training the statistics follow what the latents have become."""
    old, new = torch.randn(2, 3, 1, 8, 8), 3 * torch.randn(2, 3, 1, 8, 8) + 5
    for latents, count in ((old, 200), (new, 1500)):
        for _ in range(count):
            vae._measure(latents)
    expected = new.transpose(0, 1).flatten(1)
    torch.testing.assert_close(vae.latent_shift, expected.mean(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        vae.latent_scale, expected.std(1, unbiased=False), atol=1e-3, rtol=1e-3
    )


def test_a_clip_that_does_not_fit(vae: VAE3D) -> None:
    with pytest.raises(UserError, match=r"1 \+ 4·n frames"):
        vae.encode(torch.zeros(1, 3, 8, 8, 8))
    with pytest.raises(UserError, match="multiple of 4"):
        vae.encode(torch.zeros(1, 3, 5, 10, 8))


def test_impossible_options(tiny_backbone: Backbone) -> None:
    with pytest.raises(UserError, match="latent_channels"):
        VAE3D(backbone=tiny_backbone, latent_channels=0)
