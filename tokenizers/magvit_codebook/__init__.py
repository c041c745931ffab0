"""magvit_codebook: discrete tokens by LFQ, BSQ or VQ in the autoencoder of `magvit_fsq`.

Encoder and decoder are those of `magvit_fsq` and `vae3d`; only the bottleneck differs, so bottlenecks can be compared:

- `lfq`: lookup-free quantisation (MAGVIT-v2, arXiv 2310.05737). A latent has one number for each bit, and its sign is
  the bit. Losses: entropy (certain tokens, all ids in use) and commitment.
- `bsq`: binary spherical quantisation (arXiv 2406.07548). The same for latents on the unit sphere.
- `vq`: a learned codebook (VQ-VAE, arXiv 1711.00937). A latent becomes its nearest code. The codes are moving averages
  of the latents that chose them; a code that is hardly used is replaced by a latent of the batch. Loss: commitment.

The bottlenecks are those of vector-quantize-pytorch, with its default temperatures and decay.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import LFQ, VectorQuantize

from arvid.contracts import TokenSpec, UserError
from arvid.nn.causal_conv import PUBLISHED, Backbone, CausalDecoder, CausalEncoder
from arvid.nn.discrete_autoencoder import DiscreteAutoencoder
from arvid.nn.hyperparameters import plain
from arvid.ranges import at_least, between

Bottleneck = Literal["lfq", "bsq", "vq"]
MAX_BITS = 18
"""Of an id, as in MAGVIT-v2. The entropy loss has a number for each token and id."""
VQ_CHANNELS = 8
LEAST_USE = 2
"""Moving average of the latents of a batch that choose a code, below which it is replaced."""


class MagvitCodebook(DiscreteAutoencoder):
    """LFQ, BSQ or VQ between the causal encoder and decoder.

    Args:
        backbone: size of encoder and decoder.
        bottleneck: `lfq`, `bsq` or `vq`.
        bits: bits of an id; there are 2^bits ids.
        channels: numbers of a latent of `vq`, by default 8. The others have one for each bit.
        entropy_weight: weight of the entropy loss of `lfq` and `bsq`.
        commitment_weight: weight of the commitment loss, which draws latents to their codes.

    Raises UserError for values outside their ranges, and for `channels` of a bottleneck without that choice.
    """

    def __init__(
        self,
        *,
        backbone: Backbone = PUBLISHED,
        bottleneck: Bottleneck = "lfq",
        bits: int = 12,
        channels: int | None = None,
        entropy_weight: float = 0.1,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        between(1, MAX_BITS).require(bits=bits)
        at_least(1).require(channels=channels)
        at_least(0).require(entropy_weight=entropy_weight, commitment_weight=commitment_weight)
        if channels is not None and bottleneck != "vq":
            raise UserError(
                f"A latent of {bottleneck} has one number for each bit: leave channels out."
            )
        self.hyperparameters = plain(
            backbone=backbone,
            bottleneck=bottleneck,
            bits=bits,
            channels=channels,
            entropy_weight=entropy_weight,
            commitment_weight=commitment_weight,
        )
        width = (channels or VQ_CHANNELS) if bottleneck == "vq" else bits
        self._spec = TokenSpec("discrete", 2**bits, backbone.total_stride, causal=True)
        self.encoder = CausalEncoder(backbone, width)
        self.decoder = CausalDecoder(backbone, width)
        self.quantizer: Any  # the library has no types
        if bottleneck == "vq":
            self.quantizer = VectorQuantize(
                dim=width,
                codebook_size=2**bits,
                commitment_weight=commitment_weight,
                kmeans_init=False,
                threshold_ema_dead_code=LEAST_USE,
            )
        else:
            self.quantizer = LFQ(
                dim=bits,
                codebook_size=2**bits,
                entropy_loss_weight=entropy_weight,
                commitment_loss_weight=commitment_weight,
                spherical=bottleneck == "bsq",
                channel_first=False,
            )

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def latents_to_indices(self, latents: Float[Tensor, "b t h w c"]) -> Int[Tensor, "b t h w"]:
        with torch.no_grad():
            return self._quantized(latents)[1]

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The decoder's input for each token."""
        rows = indices.flatten()[None]
        if isinstance(self.quantizer, VectorQuantize):
            codes = self.quantizer.get_codes_from_indices(rows)
        else:
            codes = self.quantizer.indices_to_codes(rows)
        out: Tensor = codes.reshape(*indices.shape, -1)
        return out

    def training_losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], dict[str, Tensor]]:
        """The reconstruction, and `loss`: the bottleneck's, already weighted."""
        codes, _, loss = self._quantized(self.latents(video))
        return self.decode_codes(codes), {"loss": loss}

    def _quantized(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, t, h, w, C) with a straight-through gradient, their ids, and the bottleneck's loss.

        In training mode this changes the codebook of `vq`.
        """
        codes, indices, loss = self.quantizer(latents.flatten(1, 3))
        shape = latents.shape[:-1]
        return codes.reshape(latents.shape), indices.reshape(shape).long(), loss.sum()
