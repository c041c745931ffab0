"""magvit_codebook: ids and codes of LFQ, BSQ and VQ, their losses, a codebook that learns, streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_codebook import MagvitCodebook
from arvid.training.export import load_tokenizer, save_tokenizer

BOTTLENECKS = ("lfq", "bsq", "vq")


Build = Callable[..., MagvitCodebook]


@pytest.fixture
def build(tiny_backbone: Backbone) -> Build:
    """`build(bottleneck, **options)`: a tokenizer with 64 ids."""

    def make(bottleneck: str, **options: object) -> MagvitCodebook:
        torch.manual_seed(0)
        given = {"bottleneck": bottleneck, "bits": 6, **options}
        return MagvitCodebook(backbone=tiny_backbone, **given).eval()  # type: ignore[arg-type]

    return make


@pytest.fixture(params=BOTTLENECKS)
def tokenizer(request: pytest.FixtureRequest, build: Build) -> MagvitCodebook:
    return build(request.param)


def test_every_id_comes_back_from_its_code(tokenizer: MagvitCodebook) -> None:
    ids = torch.arange(64).reshape(1, 4, 4, 4)
    codes = tokenizer.indices_to_codes(ids)
    assert tokenizer.spec.size == 64
    assert torch.equal(tokenizer.latents_to_indices(codes), ids)
    assert torch.equal(tokenizer.indices_to_codes(ids[0, 0]), codes[0, 0])


def test_codes_of_bits_are_signs_and_lie_on_the_sphere(build: Build) -> None:
    ids = torch.arange(64)
    signs, sphere = (build(name).indices_to_codes(ids) for name in ("lfq", "bsq"))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(sphere, signs / 6**0.5)
    latents = torch.tensor([[0.3, -0.1, 2.0, -5.0, 0.2, -0.2]]).reshape(1, 1, 1, 1, 6)
    assert build("lfq").latents_to_indices(latents).item() == 0b101010


def test_vq_takes_the_nearest_code(build: Build) -> None:
    tokenizer = build("vq", channels=3)
    table = tokenizer.indices_to_codes(torch.arange(64))
    latents = torch.randn(2, 1, 3, 3, 3)
    expected = torch.cdist(latents.reshape(-1, 3), table).argmin(1).reshape(2, 1, 3, 3)
    assert torch.equal(tokenizer.latents_to_indices(latents), expected)


def test_what_is_trained_is_what_is_decoded(tokenizer: MagvitCodebook, video: Tensor) -> None:
    with torch.no_grad():
        reconstruction, losses = tokenizer.training_losses(video)
        tokens = tokenizer.encode(video)
        assert tokens.shape == (2, 3, 2, 2)
        torch.testing.assert_close(tokenizer.decode(tokens), reconstruction.clamp(-1, 1))
        pieces = torch.cat(list(tokenizer.encode_stream([video[:, :, :5], video[:, :, 5:]])), 1)
        assert torch.equal(pieces, tokens)
        frames = torch.cat(list(tokenizer.decode_stream([tokens[:, :2], tokens[:, 2:]])), 2)
        torch.testing.assert_close(frames, tokenizer.decode(tokens))
    assert losses["loss"].ndim == 0


def test_gradients_reach_every_parameter(tokenizer: MagvitCodebook, video: Tensor) -> None:
    reconstruction, losses = tokenizer.train().training_losses(video)
    (reconstruction.square().mean() + losses["loss"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_the_codebook_follows_the_latents_in_training_alone(build: Build, video: Tensor) -> None:
    tokenizer = build("vq")
    ids = torch.arange(64)
    before = tokenizer.indices_to_codes(ids).clone()
    tokenizer.training_losses(video)
    assert torch.equal(tokenizer.indices_to_codes(ids), before)
    tokenizer.train()
    for _ in range(3):
        tokenizer.training_losses(video)
    tokenizer.eval()
    assert not torch.equal(tokenizer.indices_to_codes(ids), before)
    latents = tokenizer.latents(video)
    table = tokenizer.indices_to_codes(ids)
    old, new = (
        torch.cdist(latents.reshape(-1, 8), t).min(1).values.mean() for t in (before, table)
    )
    assert new < old


def test_entropy_and_commitment_have_their_weights(build: Build, video: Tensor) -> None:
    losses = {}
    for entropy, commitment in ((0.0, 0.0), (0.1, 0.0), (0.2, 0.0), (0.0, 0.5)):
        net = build("lfq", entropy_weight=entropy, commitment_weight=commitment).train()
        losses[entropy, commitment] = net.training_losses(video)[1]["loss"].item()
    assert losses[0.0, 0.0] == 0
    assert losses[0.2, 0.0] == pytest.approx(2 * losses[0.1, 0.0], rel=1e-4)
    assert losses[0.0, 0.5] > 0


def test_a_file_holds_bottleneck_and_codebook(
    tokenizer: MagvitCodebook, video: Tensor, tmp_path: Path
) -> None:
    tokenizer.train().training_losses(video)
    tokenizer.eval()
    save_tokenizer(tokenizer, tmp_path / "x.safetensors", {})
    loaded = load_tokenizer(tmp_path / "x.safetensors")
    assert isinstance(loaded, MagvitCodebook)
    assert loaded.hyperparameters == tokenizer.hyperparameters
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))


def test_what_is_refused(build: Build) -> None:
    with pytest.raises(UserError, match="one number for each bit"):
        build("lfq", channels=8)
    with pytest.raises(UserError, match="bits"):
        build("lfq", bits=19)
