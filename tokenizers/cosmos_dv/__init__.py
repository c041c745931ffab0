"""cosmos_dv: the discrete video tokenizer of NVIDIA Cosmos (arXiv 2501.03575), with finite scalar quantisation.

An id has a digit for each of six channels, with 8, 8, 8, 5, 5 and 5 levels: 64,000 ids. The first channel is the least
significant digit. A token covers 8 frames x 16 x 16 pixels, or 4 x 8 x 8. Network and tensor names are those of
`CausalDiscreteVideoTokenizer` in nvidia-cosmos/cosmos-predict1 (commit 4ed35fa). NVIDIA/Cosmos-Tokenizer (commit
3584ae7) has the same class. `arvid import cosmos-dv` reads the published weights.

There is one difference: if the strides do not divide a clip, the released code pads the clip, and arvid refuses it.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from arvid.codes import ScalarCodes
from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.lasting import constant
from arvid.nn.hyperparameters import plain
from arvid.ranges import at_least, between
from arvid.tokenizers.cosmos_dv.network import POINT, CausalConv3d, Decoder, Encoder, Sizes

__all__ = ["CosmosDV"]

MAX_WIDTH, MAX_BLOCKS, MAX_PATCH, MAX_STRIDE = 2**13, 64, 8, 64
"""Limits of the sizes that a file states. Far greater ones would overflow."""
MARGIN = 1e-3
"""The range of a channel before rounding exceeds its outermost levels by this fraction."""


class CosmosDV(VideoTokenizer):
    """The tokenizer, untrained; `arvid import cosmos-dv` reads the weights. Defaults are DV8x16x16-720p's values.

    Args:
        channels: channels of the first convolution, and of each level from pixels to latents.
        num_blocks: residual blocks of each level of the encoder; the decoder has one more.
        latent_channels: channels between encoder (or decoder) and quantisation.
        levels: numbers of levels of the channels of a code, each two or more. Their product is the vocabulary size.
        patch: size of the wavelet's patches in frames, rows and columns; a power of two.
        strides: (frames, rows, columns) of pixels per token, `patch` times powers of two.

    Raises UserError for other values.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        num_blocks: int = 2,
        latent_channels: int = 16,
        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5),
        patch: int = 4,
        strides: tuple[int, int, int] = (8, 16, 16),
    ) -> None:
        super().__init__()
        between(1, MAX_WIDTH).require(channels=channels, latent_channels=latent_channels)
        between(1, MAX_BLOCKS).require(num_blocks=num_blocks)
        between(1, MAX_PATCH).require(patch=patch)
        between(1, MAX_STRIDE).require(strides=strides)
        at_least(2).require(levels=levels)
        if len(channels) < 3:
            raise UserError(f"channels={channels} must have three numbers or more.")
        self.hyperparameters = plain(
            channels=channels,
            num_blocks=num_blocks,
            latent_channels=latent_channels,
            levels=levels,
            patch=patch,
            strides=strides,
        )
        self.codes = ScalarCodes(levels)
        self._spec = TokenSpec(
            "discrete", math.prod(levels), strides, causal=True, codes=self.codes
        )
        sizes = Sizes(
            channels=channels,
            latent_channels=latent_channels,
            num_blocks=num_blocks,
            patch=patch,
            halvings=_halvings(len(channels) - 1, patch, strides),
        )
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quant_conv = CausalConv3d(latent_channels, len(levels), POINT)
        self.post_quant_conv = CausalConv3d(len(levels), latent_channels, POINT)

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def latents(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Values before quantisation, in float32. Raises UserError if the strides do not divide the clip."""
        self.spec.grid(*video.shape[2:])
        return rearrange(self.quant_conv(self.encoder(video)), "b c t h w -> b t h w c").float()

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Ids, 0 to `spec.size` - 1. Raises UserError if the strides do not divide the clip."""
        latents = self.latents(video)
        half, offset, shift = (
            constant(values, latents.device, torch.float32)
            for values in zip(*map(_bounds, self.codes.levels), strict=True)
        )
        bounded = torch.tanh(latents + shift) * half - offset
        steps = constant(tuple(n // 2 for n in self.codes.levels), latents.device, torch.float32)
        return self.codes.nearest(bounded.round() / steps)

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The decoder's input for each id: values from -1 to 1."""
        return self.codes.vectors(indices)

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        codes = self.indices_to_codes(tokens).to(self.post_quant_conv.weight.dtype)
        latents = self.post_quant_conv(rearrange(codes, "b t h w c -> b c t h w"))
        return self.decoder(latents).clamp(-1, 1)


def _bounds(levels: int) -> tuple[float, float, float]:
    """(half, offset, shift) of a channel with this many levels: it becomes round(tanh(x + shift) · half - offset).

    With an even number of levels, 0 is between two levels: the offset is half a step. The shift maps x = 0 to 0.
    """
    half = (levels - 1) * (1 + MARGIN) / 2
    offset = 0.0 if levels % 2 else 0.5
    return half, offset, math.atanh(offset / half)


def _halvings(num_levels: int, patch: int, strides: tuple[int, int, int]) -> tuple[int, int]:
    """How often frames, and how often rows and columns, are halved after the patches.

    Raises UserError for strides that the levels cannot have.
    """
    if any(n & (n - 1) for n in (patch, *strides)) or strides[1] != strides[2]:
        raise UserError(
            f"patch={patch} and strides={strides} must be powers of two, with equal rows and columns."
        )
    frames, pixels = (int(math.log2(stride / patch)) for stride in strides[:2])
    if not 0 <= frames <= pixels < num_levels or frames > num_levels - 2:
        raise UserError(
            f"Strides of {strides} cannot be built with patches of {patch} and {num_levels} levels: the strides "
            f"divided by {patch} must be 1 to {2 ** (num_levels - 1)} for rows and columns, "
            f"1 to {2 ** (num_levels - 2)} for frames, and for frames not greater than for rows."
        )
    return frames, pixels
