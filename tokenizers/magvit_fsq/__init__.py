"""magvit_fsq: discrete tokens by finite scalar quantisation (arXiv 2309.15505) in a MAGVIT-v2-like autoencoder.

Encoder and decoder are those of Next-Block Prediction's tokenizer (arXiv 2502.07737), as in `vae3d`; only the
bottleneck differs. Each latent channel is bounded and rounded to a few levels. The levels are the digits of the token's
index, with the first channel as the least significant digit. The bottleneck has no parameters and no auxiliary loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import FSQ
from vector_quantize_pytorch.finite_scalar_quantization import round_ste

from arvid.codes import ScalarCodes
from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.nn.causal_conv import PUBLISHED, Backbone, CausalDecoder, CausalEncoder, StreamState
from arvid.nn.hyperparameters import plain
from arvid.ranges import at_least


class PublishedFSQ(FSQ):  # type: ignore[misc]  # the library has no types
    """The library's FSQ with the bounding function of the published tokenizer.

    Channels with an even number of levels are shifted by tan (the library uses atanh). The range shrinks by 1e-3 (newer
    versions of the library widen it).
    """

    def quantize(self, z: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """Codes in [-1, 1]: rounded in the forward pass, straight-through gradient in the backward pass."""
        half = (self._levels - 1) * (1 - 1e-3) / 2
        # An even number of levels has no level at 0. The offset moves the rounding grid by half a level, and the shift
        # inside tanh (about) maps z = 0 to 0 again.
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.tan(offset / half)) * half - offset
        codes: Tensor = round_ste(bounded) / (self._levels // 2)
        return codes


class MagvitFSQ(VideoTokenizer):
    """Scalar quantisation between the causal encoder and decoder.

    Args:
        backbone: size of encoder and decoder.
        levels: levels of each latent channel, three or more each; their product is the vocabulary size.
        unit_range: whether encoder and decoder use pixels in [0, 1], as the published weights do. `encode` and `decode`
            still use [-1, 1]. `arvid import nbp-tokenizer` sets it.
    """

    def __init__(
        self,
        *,
        backbone: Backbone = PUBLISHED,
        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5),
        unit_range: bool = False,
    ) -> None:
        super().__init__()
        at_least(3).require(levels=levels)
        if not levels:
            raise UserError("MagvitFSQ needs the levels of at least one latent channel, got none.")
        self.hyperparameters = plain(backbone=backbone, levels=levels, unit_range=unit_range)
        self.unit_range = unit_range
        self._spec = TokenSpec(
            "discrete",
            math.prod(levels),
            backbone.total_stride,
            causal=True,
            codes=ScalarCodes(levels),
        )
        self.encoder = CausalEncoder(backbone, len(levels))
        self.decoder = CausalDecoder(backbone, len(levels))
        self.quantizer = PublishedFSQ(list(levels), return_indices=False)

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Raises UserError if the strides do not divide the clip."""
        return self.codes_to_indices(self._codes(video))

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        return self._decode(self.indices_to_codes(tokens)).clamp(-1, 1)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip. Raises UserError if the strides do not divide a chunk."""
        state = StreamState()
        for video in chunks:
            with torch.no_grad():
                tokens = self.codes_to_indices(self._codes(video, state))
            yield tokens

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip."""
        state = StreamState()
        for tokens in chunks:
            with torch.no_grad():
                video = self._decode(self.indices_to_codes(tokens), state).clamp(-1, 1)
            yield video

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The decoder's input for each token: its quantised channels in [-1, 1]."""
        codes: Tensor = self.quantizer._indices_to_codes(indices)
        return codes

    def codes_to_indices(self, codes: Float[Tensor, "... c"]) -> Int[Tensor, ...]:
        """int64 index of each vector of codes; the first channel is the least significant digit."""
        indices: Tensor = self.quantizer.codes_to_indices(codes)
        return indices.long()

    def training_losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], dict[str, Tensor]]:
        """The reconstruction, and no losses: this bottleneck has none."""
        return self._decode(self._codes(video)), {}

    def _codes(self, video: Tensor, state: StreamState | None = None) -> Tensor:
        """Quantised latents of a clip or of the next chunk of a stream: (B, t, h, w, C), float32."""
        codes: Tensor = self.quantizer.quantize(self._latent(video, state).float())
        return codes

    def _latent(self, video: Tensor, state: StreamState | None = None) -> Tensor:
        later_chunk = state is not None and state.started
        self.spec.grid(*video.shape[2:], later_chunk=later_chunk)
        pixels = (video + 1) / 2 if self.unit_range else video
        return rearrange(self.encoder(pixels, state), "b c t h w -> b t h w c")

    def _decode(self, codes: Tensor, state: StreamState | None = None) -> Tensor:
        video: Tensor = self.decoder(rearrange(codes, "b t h w c -> b c t h w"), state)
        return 2 * video - 1 if self.unit_range else video
