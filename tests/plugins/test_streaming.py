"""Long clips in chunks: the same tokens and frames as at once, in memory that does not grow."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.tokenizers.vae3d import VAE3D

TINY = Backbone(
    base=4,
    multipliers=(1, 2, 2),
    strides=((2, 2, 2), (2, 2, 2)),
    num_units=1,
    num_mid_units=1,
    num_groups=2,
)


@pytest.fixture(params=["magvit_fsq", "vae3d"])
def tokenizer(request: pytest.FixtureRequest) -> VideoTokenizer:
    if request.param == "magvit_fsq":
        return MagvitFSQ(backbone=TINY, levels=(8, 5, 5), unit_range=True).eval()
    vae = VAE3D(backbone=TINY, latent_channels=3).eval()
    vae.train().training_losses(torch.rand(2, 3, 5, 8, 8))
    return vae.eval()


@pytest.mark.parametrize("latent_frames", [1, 3, 100])
def test_257_frames_in_chunks(
    tokenizer: VideoTokenizer, latent_frames: int, rounding: Callable[..., Any]
) -> None:
    video = torch.rand(1, 3, 257, 8, 8) * 2 - 1
    chunks = video.split(tokenizer.spec.chunk_frames(257, latent_frames), dim=2)
    tokens = list(tokenizer.encode_stream(chunks))
    assert [part.shape[1] for part in tokens[:-1]] == [latent_frames] * (len(chunks) - 1)
    frames = list(tokenizer.decode_stream(tokens))
    assert [part.shape[2] for part in frames] == [chunk.shape[2] for chunk in chunks]
    assert not any(part.requires_grad for part in [*tokens, *frames])
    with torch.no_grad():
        whole = tokenizer.encode(video)
        expected = tokenizer.decode(whole)
    for parts, of_all, axis in ((tokens, whole, 1), (frames, expected, 2)):
        tolerance = rounding(of_all, tokenizer)
        torch.testing.assert_close(torch.cat(parts, dim=axis), of_all, **tolerance)


def test_a_stream_lets_go_of_its_chunks(tokenizer: VideoTokenizer) -> None:
    """A chunk is asked for when the frames of the one before are out, and older ones are gone."""
    given: list[weakref.ref[Tensor]] = []
    taken: list[weakref.ref[Tensor]] = []

    def video() -> Iterator[Tensor]:
        for length in (5, 8, 8, 8):
            assert not any(old() is not None for old in (*given[:-1], *taken[:-1]))
            chunk = torch.rand(1, 3, length, 8, 8)
            given.append(weakref.ref(chunk))
            yield chunk
            assert len(taken) == len(given)

    for frames in tokenizer.decode_stream(tokenizer.encode_stream(video())):
        taken.append(weakref.ref(frames))


def test_two_streams_at_a_time(tokenizer: VideoTokenizer, rounding: Callable[..., Any]) -> None:
    """The state belongs to the stream, not to the tokenizer."""
    videos = torch.rand(2, 1, 3, 9, 8, 8)
    chunks = [video.split(tokenizer.spec.chunk_frames(9, 1), dim=2) for video in videos]
    streams = [tokenizer.encode_stream(parts) for parts in chunks]
    together = [torch.cat(parts, dim=1) for parts in zip(*zip(*streams, strict=True), strict=True)]
    for video, tokens in zip(videos, together, strict=True):
        expected = tokenizer.encode(video)
        torch.testing.assert_close(tokens, expected, **rounding(expected, tokenizer))


def test_chunks_that_do_not_fit(tokenizer: VideoTokenizer) -> None:
    first, later = torch.zeros(1, 3, 5, 8, 8), torch.zeros(1, 3, 8, 8, 8)
    with pytest.raises(UserError, match=r"1 \+ 4·n frames"):
        list(tokenizer.encode_stream([later]))
    with pytest.raises(UserError, match="5 frames are not a multiple of the temporal stride 4"):
        list(tokenizer.encode_stream([first, first]))
    with pytest.raises(UserError, match="must be alike"):
        list(tokenizer.encode_stream([first, torch.zeros(1, 3, 8, 16, 8)]))


def test_nothing_comes_of_nothing(tokenizer: VideoTokenizer) -> None:
    assert list(tokenizer.encode_stream([])) == []
    assert list(tokenizer.decode_stream([])) == []


class Halves(VideoTokenizer):
    """Each token is the mean of two frames: it has no way of its own to stream."""

    spec = TokenSpec("continuous", 3, (2, 1, 1), causal=False)

    def encode(self, video: Tensor) -> Tensor:
        return video.unflatten(2, (-1, 2)).mean(3).movedim(1, -1)

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens.movedim(-1, 1).repeat_interleave(2, dim=2)


def test_a_tokenizer_that_cannot_stream_takes_everything_at_once() -> None:
    tokenizer = Halves()
    video = torch.rand(1, 3, 7, 4, 4).repeat_interleave(2, dim=2)
    (tokens,) = tokenizer.encode_stream(video.split(3, dim=2))  # 3 frames are no two tokens
    (frames,) = tokenizer.decode_stream(tokens.split(2, dim=1))
    assert torch.equal(frames, video)
    assert list(tokenizer.encode_stream([])) == []


def test_chunk_lengths() -> None:
    causal = TokenSpec("discrete", 8, (4, 8, 8), causal=True)
    assert causal.chunk_frames(21, 2) == [5, 8, 8]
    assert causal.chunk_frames(17, 2) == [5, 8, 4]
    assert causal.chunk_frames(1, 2) == [1]
    assert TokenSpec("discrete", 8, (4, 8, 8), causal=False).chunk_frames(20, 2) == [8, 8, 4]
    with pytest.raises(UserError, match=r"1 \+ 4·n frames"):
        causal.chunk_frames(20, 2)
