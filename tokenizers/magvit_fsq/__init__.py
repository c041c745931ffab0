"""magvit_fsq: discrete tokens by finite scalar quantisation (arXiv 2309.15505) in a MAGVIT-v2-like autoencoder.

Encoder and decoder are those of Next-Block Prediction's tokenizer (arXiv 2502.07737), as in `vae3d`; only the
bottleneck differs. Each latent channel is bounded and rounded to a few levels. The levels are the digits of the token's
index, with the first channel as the least significant digit. The bottleneck has no parameters and no auxiliary loss.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import FSQ
from vector_quantize_pytorch.finite_scalar_quantization import round_ste

from arvid.codes import ScalarCodes
from arvid.contracts import TokenSpec, UserError
from arvid.nn.causal_conv import PUBLISHED, Backbone, CausalDecoder, CausalEncoder
from arvid.nn.discrete_autoencoder import DiscreteAutoencoder
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


class MagvitFSQ(DiscreteAutoencoder):
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

    def latents_to_indices(self, latents: Float[Tensor, "b t h w c"]) -> Int[Tensor, "b t h w"]:
        return self.codes_to_indices(self.quantizer.quantize(latents))

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
        return self.decode_codes(self.quantizer.quantize(self.latents(video))), {}
