"""tats: the time-agnostic VQGAN of TATS (arXiv 2204.03638), with a learned codebook.

In the published models, a token covers 4 frames x 8 x 8 pixels. Its id is the index of the nearest of 16,384 codes. The
tokenizer is not causal: a clip has a multiple of 4 frames, and padding copies the border frames on both sides. Network
and tensor names are those of `VQGAN` in `tats/tats_vqgan.py` of songweige/TATS (commit 03bbce1). `arvid import tats`
reads the published weights. They were trained on clips of 16 frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.nn.codebook import nearest_codes
from arvid.nn.hyperparameters import plain
from arvid.ranges import between
from arvid.tokenizers.tats.network import NUM_GROUPS, Decoder, Encoder, Norm, SameConv3d

__all__ = ["Tats"]

MAX_STRIDE, MAX_WIDTH, MAX_CODES = 64, 2**12, 2**24
"""Limits of the sizes that a file states. Far greater ones would overflow."""


class Tats(VideoTokenizer):
    """The tokenizer, untrained; `arvid import tats` reads the weights. Defaults are those of the released training.

    Args:
        base: channels of the first convolution; each level doubles them.
        strides: (frames, rows, columns) of pixels per token, powers of two up to 64.
        num_codes: number of ids.
        channels: length of a code.
        norm: `batch` (statistics of the training) or `group` (statistics of the clip).

    Raises UserError for other values.
    """

    def __init__(
        self,
        *,
        base: int = 32,
        strides: tuple[int, int, int] = (4, 8, 8),
        num_codes: int = 16_384,
        channels: int = 256,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        between(1, MAX_WIDTH).require(base=base, channels=channels)
        between(1, MAX_CODES).require(num_codes=num_codes)
        between(1, MAX_STRIDE).require(strides=strides)
        if any(stride & (stride - 1) for stride in strides) or max(strides) == 1:
            raise UserError(f"The strides {strides} must be powers of two, and not all 1.")
        if norm == "group" and 2 * base % NUM_GROUPS:
            raise UserError(f"base must be a multiple of {NUM_GROUPS // 2} for group norms.")
        self.hyperparameters = plain(
            base=base,
            strides=strides,
            num_codes=num_codes,
            channels=channels,
            norm=norm,
        )
        self._spec = TokenSpec("discrete", num_codes, strides, causal=False)
        self.encoder = Encoder(base, strides, kind=norm)
        self.decoder = Decoder(base, strides, kind=norm)
        self.pre_vq_conv = SameConv3d(self.encoder.out_channels, channels, 1)
        self.post_vq_conv = SameConv3d(channels, self.encoder.out_channels, 1)
        self.codebook = nn.Module()
        self.codebook.register_buffer("embeddings", torch.empty(num_codes, channels).normal_())

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    @property
    def codes(self) -> Float[Tensor, "V c"]:
        """The code of each id."""
        return self.codebook.get_buffer("embeddings")

    def latents(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """The encoder's output. Raises UserError if the strides do not divide the clip."""
        self.spec.grid(*video.shape[2:])
        pixels = video / 2  # the network uses [-0.5, 0.5]
        return rearrange(self.pre_vq_conv(self.encoder(pixels)), "b c t h w -> b t h w c")

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Raises UserError if the strides do not divide the clip."""
        return nearest_codes(self.latents(video), self.codes)

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The code of each id."""
        return F.embedding(indices, self.codes)

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        codes = rearrange(self.indices_to_codes(tokens), "b t h w c -> b c t h w")
        return (2 * self.decoder(self.post_vq_conv(codes))).clamp(-1, 1)
