"""magvit_fsq: the published bound and digit order, token layout, causality through the bottleneck."""

from __future__ import annotations

import pytest
import torch

from arvid.contracts import TokenGrid, UserError
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ


@pytest.fixture
def tokenizer(tiny_backbone: Backbone) -> MagvitFSQ:
    return MagvitFSQ(backbone=tiny_backbone, levels=(8, 5, 5)).eval()


@pytest.fixture
def published(tiny_backbone: Backbone) -> MagvitFSQ:
    """The published levels, behind a small backbone."""
    return MagvitFSQ(backbone=tiny_backbone).eval()


def test_published_parameters() -> None:
    with torch.device("meta"):
        tokenizer = MagvitFSQ()
    assert sum(p.numel() for p in tokenizer.parameters()) == 370_372_105
    assert tokenizer.spec.size == 64_000
    assert tokenizer.spec.grid(17, 128, 128) == TokenGrid(5, 16, 16)


def test_published_code(published: MagvitFSQ) -> None:
    codes = published.quantizer.quantize(torch.tensor([0.3, -1.2, 2.0, 0.1, -0.7, 1.5]))
    assert codes.tolist() == [0.25, -0.75, 0.75, 0.0, -0.5, 1.0]
    index = published.codes_to_indices(codes)
    assert index.dtype == torch.int64
    assert index.item() == 55_245


def test_every_index_comes_back(published: MagvitFSQ) -> None:
    indices = torch.arange(64_000)
    codes = published.indices_to_codes(indices)
    assert codes[0].tolist() == [-1.0] * 6
    assert codes[1].tolist() == [-0.75, -1, -1, -1, -1, -1]
    assert codes[-1].tolist() == [0.75, 0.75, 0.75, 1, 1, 1]
    assert torch.equal(published.codes_to_indices(codes), indices)


def test_bound_is_the_published_one(published: MagvitFSQ) -> None:
    """Far out the codes end at the outermost levels; the shift is tan, which differs from atanh at these points."""
    far = torch.full((6,), 30.0)
    assert published.quantizer.quantize(-far).tolist() == [-1.0] * 6
    assert published.quantizer.quantize(far).tolist() == [0.75] * 3 + [1.0] * 3
    for z in torch.linspace(-3, 3, 1001):
        half, shift = 7 * 0.999 / 2, torch.tan(torch.tensor(0.5 / (7 * 0.999 / 2)))
        expected = torch.round(torch.tanh(z + shift) * half - 0.5) / 4
        assert published.quantizer.quantize(z.expand(6))[0] == expected


def test_gradient_passes_straight_through(published: MagvitFSQ) -> None:
    z = torch.zeros(6, requires_grad=True)
    published.quantizer.quantize(z).sum().backward()
    assert z.grad is not None
    assert z.grad.min() > 0.5


def test_spec_and_shapes(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    assert tokenizer.spec.type == "discrete"
    assert (tokenizer.spec.size, tokenizer.spec.strides) == (200, (4, 4, 4))
    tokens = tokenizer.encode(video)
    assert tokens.shape == (2, 3, 2, 2)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 200
    reconstruction = tokenizer.decode(tokens)
    assert reconstruction.shape == video.shape
    assert reconstruction.abs().max() <= 1


def test_an_image_is_a_video_of_one_frame(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    tokens = tokenizer.encode(video[:, :, :1])
    assert torch.equal(tokens, tokenizer.encode(video)[:, :1])
    assert tokenizer.decode(tokens).shape == (2, 3, 1, 8, 8)


def test_prefixes_agree(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    with torch.no_grad():
        tokens = tokenizer.encode(video)
        assert torch.equal(tokenizer.encode(video[:, :, :5]), tokens[:, :2])
        torch.testing.assert_close(
            tokenizer.decode(tokens[:, :2]),
            tokenizer.decode(tokens)[:, :, :5],
            atol=1e-5,
            rtol=1e-5,
        )


def test_what_a_latent_frame_sees(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    """Latent t sees frames 0 to 4t and no later one; frames 0 to 4t come from latents 0 to t."""
    with torch.no_grad():
        latent = tokenizer.latents(video)
        for first, unchanged in ((1, 1), (5, 2)):
            other = video.clone()
            other[:, :, first:] = torch.rand(2, 3, 9 - first, 8, 8)
            changed = tokenizer.latents(other)
            torch.testing.assert_close(changed[:, :unchanged], latent[:, :unchanged])
            assert (changed[:, unchanged] - latent[:, unchanged]).abs().max() > 1e-3
        tokens = torch.randint(200, (2, 3, 2, 2))
        other = tokens.clone()
        other[:, 2:] = (other[:, 2:] + 77) % 200
        before, after = tokenizer.decode(tokens), tokenizer.decode(other)
    torch.testing.assert_close(before[:, :, :5], after[:, :, :5])
    assert (before[:, :, 5:] - after[:, :, 5:]).abs().max() > 1e-3


def test_unit_range_is_inside_only(video: torch.Tensor, tiny_backbone: Backbone) -> None:
    """Encoder and decoder see [0, 1]; both doors stay [-1, 1]."""
    inside = MagvitFSQ(backbone=tiny_backbone, levels=(8, 5, 5), unit_range=True).eval()
    outside = MagvitFSQ(backbone=tiny_backbone, levels=(8, 5, 5)).eval()
    outside.load_state_dict(inside.state_dict())
    unit = (video + 1) / 2
    tokens = inside.encode(video)
    assert torch.equal(tokens, outside.encode(unit))
    assert not torch.equal(tokens, outside.encode(video))
    expected = outside.decoder(outside.indices_to_codes(tokens).movedim(-1, 1)) * 2 - 1
    torch.testing.assert_close(inside.decode(tokens), expected.clamp(-1, 1))


def test_rounding_is_in_full_precision(published: MagvitFSQ, tiny_backbone: Backbone) -> None:
    """In bf16 weights and activations are coarse, but never the codes."""
    half = MagvitFSQ(backbone=tiny_backbone).bfloat16().eval()
    half_codes = half.quantizer.quantize(torch.tensor([0.3, -1.2, 2.0, 0.1, -0.7, 1.5]))
    assert half.codes_to_indices(half_codes).item() == 55_245
    indices = torch.arange(64_000)
    assert torch.equal(half.codes_to_indices(half.indices_to_codes(indices)), indices)
    video = torch.rand(1, 3, 5, 8, 8)
    assert half.decode(half.encode(video)).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        latents = published.latents(video)
        assert latents.dtype == published.quantizer.quantize(latents).dtype == torch.float32


def test_what_is_trained_is_what_is_decoded(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    """The decoder sees the same codes in training and from token indices."""
    with torch.no_grad():
        codes = tokenizer.quantizer.quantize(tokenizer.latents(video))
        torch.testing.assert_close(
            tokenizer.indices_to_codes(tokenizer.codes_to_indices(codes)), codes
        )


def test_gradient_reaches_every_parameter(tokenizer: MagvitFSQ, video: torch.Tensor) -> None:
    reconstruction, losses = tokenizer.training_losses(video)
    assert losses == {}
    reconstruction.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_a_clip_that_does_not_fit(tokenizer: MagvitFSQ) -> None:
    with pytest.raises(UserError, match=r"1 \+ 4·n frames"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, 8))


def test_impossible_levels(tiny_backbone: Backbone) -> None:
    with pytest.raises(UserError, match="levels must be at least 3"):
        MagvitFSQ(backbone=tiny_backbone, levels=(8, 2))
