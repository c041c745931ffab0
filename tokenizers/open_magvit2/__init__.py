"""open_magvit2: the video tokenizer of Open-MAGVIT2 (arXiv 2409.04410), with lookup-free quantisation.

An id has 18 bits, one for each channel of the latent: the bit is set if the channel is above 0. The first channel is
the least significant bit. A token covers 4 frames x 8 x 8 pixels. Network and tensor names are those of `VQModel` in
`src/Open_MAGVIT2/models/video_lfqgan.py` of TencentARC/SEED-Voken (commit b9a17ea). `arvid import open-magvit2` reads
the published weights. They were trained on clips of 17 frames.

There are two differences from the released code. Clips must have 1 + 4n frames; the released code accepts other clips,
and decodes them to another number of frames. `decode` refuses a single token; the released code returns NaN.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import TokenGrid, TokenSpec, UserError, VideoTokenizer
from arvid.lasting import constant
from arvid.nn.hyperparameters import plain
from arvid.ranges import at_least, between
from arvid.tokenizers.open_magvit2.network import Decoder, Encoder

__all__ = ["OpenMagvit2"]

STRIDES = (4, 8, 8)
MAX_BITS = 62
"""Maximum number of bits of an id, which is an int64."""


class OpenMagvit2(VideoTokenizer):
    """The tokenizer, untrained; `arvid import open-magvit2` reads the weights. Defaults are the published values.

    Args:
        channels: channels of each of the four levels, from pixels to latents.
        bits: bits of an id; there are 2^bits ids.
        num_blocks: residual blocks of each level, and between encoder (or decoder) and latents.
        num_groups: groups of each group norm; must divide all channels.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (128, 256, 256, 512),
        bits: int = 18,
        num_blocks: int = 4,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        at_least(1).require(channels=channels, num_blocks=num_blocks, num_groups=num_groups)
        between(1, MAX_BITS).require(bits=bits)
        if len(channels) != 4 or any(c % num_groups for c in channels):
            raise UserError(
                f"The channels {channels} must be four multiples of num_groups={num_groups}."
            )
        self.hyperparameters = plain(
            channels=channels, bits=bits, num_blocks=num_blocks, num_groups=num_groups
        )
        self._spec = TokenSpec("discrete", 2**bits, STRIDES, causal=True, exact_prefix=False)
        self.encoder = Encoder(channels, bits, num_blocks=num_blocks, num_groups=num_groups)
        self.decoder = Decoder(channels, bits, num_blocks=num_blocks, num_groups=num_groups)
        self.place_values = tuple(2**i for i in range(bits))

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def latents(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """The encoder's output: its signs are the bits. Raises UserError if the strides do not divide the clip."""
        self.spec.grid(*video.shape[2:])
        return rearrange(self.encoder(video), "b c t h w -> b t h w c")

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Raises UserError if the strides do not divide the clip."""
        bits = self.latents(video) > 0
        return (bits * constant(self.place_values, bits.device, torch.long)).sum(-1)

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The decoder's input for each id: -1 or 1 for each bit."""
        bits = indices[..., None] & constant(self.place_values, indices.device, torch.long)
        return torch.where(bits != 0, 1.0, -1.0)

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError for a single token: the decoder's norms need a standard deviation over tokens."""
        if grid.num_tokens < 2:
            raise UserError(
                "This tokenizer does not decode a single token: "
                "use clips with more than one latent frame, or more than 8x8 pixels."
            )

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        """Raises UserError for a single token."""
        self.check_grid(TokenGrid(*tokens.shape[1:]))
        codes = self.indices_to_codes(tokens).to(self.decoder.conv_in.weight.dtype)
        return self.decoder(rearrange(codes, "b t h w c -> b c t h w")).clamp(-1, 1)
