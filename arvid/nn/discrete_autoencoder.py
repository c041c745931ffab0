"""Base of discrete tokenizers with the causal encoder and decoder: encoding and decoding, whole or as a stream.

A subclass adds the bottleneck: latents become ids, and ids become codes, which the decoder takes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import VideoTokenizer
from arvid.nn.causal_conv import CausalDecoder, CausalEncoder, StreamState


class DiscreteAutoencoder(VideoTokenizer):
    """A causal encoder, a bottleneck with ids, a causal decoder."""

    encoder: CausalEncoder
    decoder: CausalDecoder
    unit_range = False
    """Whether encoder and decoder use pixels in [0, 1]. `encode` and `decode` still use [-1, 1]."""

    @abstractmethod
    def latents_to_indices(self, latents: Float[Tensor, "b t h w c"]) -> Int[Tensor, "b t h w"]:
        """int64 id of each latent (float32)."""

    @abstractmethod
    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The decoder's input for each id."""

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Raises UserError if the strides do not divide the clip."""
        return self.latents_to_indices(self.latents(video))

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        return self.decode_codes(self.indices_to_codes(tokens)).clamp(-1, 1)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip. Raises UserError if the strides do not divide a chunk."""
        state = StreamState()
        for video in chunks:
            with torch.no_grad():
                tokens = self.latents_to_indices(self.latents(video, state))
            yield tokens

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip."""
        state = StreamState()
        for tokens in chunks:
            with torch.no_grad():
                video = self.decode_codes(self.indices_to_codes(tokens), state).clamp(-1, 1)
            yield video

    def latents(
        self, video: Float[Tensor, "b 3 T H W"], state: StreamState | None = None
    ) -> Float[Tensor, "b t h w c"]:
        """The encoder's output, in float32, for a clip or for the next chunk of a stream."""
        later_chunk = state is not None and state.started
        self.spec.grid(*video.shape[2:], later_chunk=later_chunk)
        pixels = (video + 1) / 2 if self.unit_range else video
        return rearrange(self.encoder(pixels, state), "b c t h w -> b t h w c").float()

    def decode_codes(
        self, codes: Float[Tensor, "b t h w c"], state: StreamState | None = None
    ) -> Float[Tensor, "b 3 T H W"]:
        """The decoder's output, not limited to [-1, 1]."""
        video: Tensor = self.decoder(rearrange(codes, "b t h w c -> b c t h w"), state)
        return 2 * video - 1 if self.unit_range else video
