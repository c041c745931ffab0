"""omnitokenizer: the VQ tokenizer of OmniTokenizer (arXiv 2406.09399), whose tokens are ids of a learned codebook.

A token covers 4 frames x 8 x 8 pixels, and a token of the first frame covers 8 x 8 pixels. Its id is the index of the
nearest of 8,192 codes. Encoder and decoder are transformers. The network is that of `VQGAN` in
`OmniTokenizer/omnitokenizer.py` of FoundationVision/OmniTokenizer (commit 701b619) as it runs with PyTorch 2.1 or
newer. `arvid import omnitokenizer` reads the published weights, which were trained on clips of 17 frames with 128 to
320 rows and columns.

There is one difference: the released code supports square frames only. arvid supports all frames that the windows of
the attention divide.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenGrid, TokenSpec, UserError, VideoTokenizer
from arvid.nn.codebook import nearest_codes
from arvid.nn.hyperparameters import plain
from arvid.ranges import between
from arvid.tokenizers.omnitokenizer.network import Patches, Pixels, Transformer

__all__ = ["OmniTokenizer"]

MAX_STRIDE, MAX_WIDTH, MAX_CODES, MAX_DEPTH = 64, 2**14, 2**24, 256
"""Limits of the sizes that a file states. Far greater ones would overflow."""


class OmniTokenizer(VideoTokenizer):
    """The tokenizer, untrained; `arvid import omnitokenizer` reads the weights. Defaults are the published values.

    Args:
        dim: width of the transformers.
        encoder_blocks: a letter for each layer of the encoder that works within frames. `t` is attention over the whole
            frame, `w` is attention in windows.
        decoder_blocks: the same for the decoder.
        temporal_depth: number of layers with attention over frames, in the encoder and in the decoder each.
        num_heads: heads of each attention; must divide `dim`.
        head_dim: dimensions of a head, a multiple of 4. In windows a head has `dim` / `num_heads` dimensions.
        hidden: inner width of the feed-forward layers.
        window: rows and columns of a window, in tokens.
        strides: (frames, rows, columns) of pixels per token.
        num_codes: number of codes, which is the vocabulary size.
        channels: dimensions of a code.

    Raises UserError for other values.
    """

    def __init__(
        self,
        *,
        dim: int = 512,
        encoder_blocks: str = "ttww",
        decoder_blocks: str = "tttt",
        temporal_depth: int = 4,
        num_heads: int = 8,
        head_dim: int = 64,
        hidden: int = 1365,
        window: int = 8,
        strides: tuple[int, int, int] = (4, 8, 8),
        num_codes: int = 8192,
        channels: int = 8,
    ) -> None:
        super().__init__()
        between(1, MAX_WIDTH).require(dim=dim, hidden=hidden, channels=channels)
        between(1, MAX_WIDTH).require(num_heads=num_heads, head_dim=head_dim)
        between(1, MAX_STRIDE).require(strides=strides, window=window)
        between(1, MAX_CODES).require(num_codes=num_codes)
        between(1, MAX_DEPTH).require(temporal_depth=temporal_depth)
        _check_blocks(encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks)
        if dim % num_heads or head_dim % 4:
            raise UserError(
                f"dim={dim} must be a multiple of num_heads={num_heads}, and head_dim={head_dim} of 4."
            )
        self.hyperparameters = plain(
            dim=dim,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            temporal_depth=temporal_depth,
            num_heads=num_heads,
            head_dim=head_dim,
            hidden=hidden,
            window=window,
            strides=strides,
            num_codes=num_codes,
            channels=channels,
        )
        self.window = window if "w" in encoder_blocks + decoder_blocks else 1
        self._spec = TokenSpec("discrete", num_codes, strides, causal=True, exact_prefix=False)
        size: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim}
        size |= {"hidden": hidden, "window": window}
        first, overall = (1, *strides[1:]), "t" * temporal_depth
        self.first_patches, self.patches = Patches(first, dim), Patches(strides, dim)
        self.encoder_frame = Transformer(encoder_blocks, dim, over="frame", **size)
        self.encoder_frames = Transformer(overall, dim, over="frames", **size)
        self.to_code = nn.Linear(dim, channels)
        self.codebook = nn.Module()
        self.codebook.register_buffer("embeddings", torch.empty(num_codes, channels).normal_())
        self.from_code = nn.Linear(channels, dim)
        self.decoder_frames = Transformer(overall, dim, over="frames", **size)
        self.decoder_frame = Transformer(decoder_blocks, dim, over="frame", **size)
        self.first_pixels, self.pixels = Pixels(first, dim), Pixels(strides, dim)

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    @property
    def codes(self) -> Float[Tensor, "V c"]:
        """The code of each id."""
        return self.codebook.get_buffer("embeddings")

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError for frames that the windows do not divide."""
        if grid.h % self.window or grid.w % self.window:
            _, fh, fw = self.spec.strides
            raise UserError(
                f"This tokenizer has windows of {self.window}x{self.window} tokens, which do not divide "
                f"{grid.h}x{grid.w}: height must be a multiple of {self.window * fh} pixels and width of "
                f"{self.window * fw}."
            )

    def latents(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Unit vectors before quantisation. Raises UserError if strides or windows do not divide the clip."""
        self.check_grid(self.spec.grid(*video.shape[2:]))
        pixels = video / 2  # the network uses [-0.5, 0.5]
        tokens = self.first_patches(pixels[:, :, :1])
        if video.shape[2] > 1:
            tokens = torch.cat([tokens, self.patches(pixels[:, :, 1:])], dim=1)
        tokens = self.encoder_frames(self.encoder_frame(tokens))
        return F.normalize(self.to_code(tokens), dim=-1)

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Ids, 0 to `num_codes` - 1. Raises UserError if strides or windows do not divide the clip."""
        return nearest_codes(self.latents(video), self.codes)

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The code of each id."""
        return F.embedding(indices, self.codes)

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        """Video in [-1, 1] (clamped). Raises UserError if the windows do not divide the frames."""
        self.check_grid(TokenGrid(*tokens.shape[1:]))
        x = self.from_code(self.indices_to_codes(tokens))
        x = self.decoder_frame(self.decoder_frames(x))
        video = self.first_pixels(x[:, :1])
        if tokens.shape[1] > 1:
            video = torch.cat([video, self.pixels(x[:, 1:])], dim=2)
        return (2 * video).clamp(-1, 1)


def _check_blocks(**blocks: str) -> None:
    for name, value in blocks.items():
        if not 1 <= len(value) <= MAX_DEPTH or set(value) - set("tw"):
            raise UserError(f"{name} must be 1 to {MAX_DEPTH} letters t and w, not {value!r:.40}.")
