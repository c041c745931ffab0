"""larp: the tokenizer of LARP (arXiv 2410.21264), whose tokens are ids of a learned codebook without positions.

A window of 16 frames of 128 x 128 pixels becomes 1,024 tokens, and each of them depends on the whole window. The tokens
have an order, but no rows and columns. arvid puts them into rows of 32 in this order, so a window becomes one latent
frame of 32 x 32 tokens. The id of a token is the index of the nearest of 8,192 codes. The network is that of
`LARPTokenizer` in `models/larp_tokenizer.py` of hywang66/LARP (commit 8aaed63). `arvid import larp` reads the published
weights.

There are two differences. The released code samples ids unless it has the option `--det`. arvid always takes the
nearest codes, as with that option. And a clip may have several windows (16·n frames); each is encoded by itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import TokenGrid, TokenSpec, UserError, VideoTokenizer
from arvid.nn.codebook import nearest_codes
from arvid.nn.hyperparameters import plain
from arvid.ranges import between
from arvid.tokenizers.larp.network import Decoder, Encoder

__all__ = ["Larp"]

MAX_SIDE, MAX_WIDTH, MAX_CODES, MAX_DEPTH = 2**12, 2**14, 2**24, 256
"""Limits of the sizes that a file states. Far greater ones would overflow."""


class Larp(VideoTokenizer):
    """The tokenizer, untrained; `arvid import larp` reads the weights. Defaults are the published values.

    Args:
        size: (frames, rows, columns) of pixels of a window.
        patch: (frames, rows, columns) of pixels of a patch; divides `size`.
        rows: rows of the token grid of a window.
        columns: columns of the token grid of a window.
        dim: width of the transformers.
        depth: blocks of the encoder and of the decoder.
        num_heads: heads of each attention; must divide `dim`.
        num_codes: number of codes, which is the vocabulary size.
        channels: dimensions of a code.

    Raises UserError for other values.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int, int] = (16, 128, 128),
        patch: tuple[int, int, int] = (4, 8, 8),
        rows: int = 32,
        columns: int = 32,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_codes: int = 8192,
        channels: int = 16,
    ) -> None:
        super().__init__()
        between(1, MAX_SIDE).require(size=size, patch=patch, rows=rows, columns=columns)
        between(1, MAX_WIDTH).require(dim=dim, num_heads=num_heads, channels=channels)
        between(1, MAX_DEPTH).require(depth=depth)
        between(1, MAX_CODES).require(num_codes=num_codes)
        if dim % num_heads:
            raise UserError(f"dim={dim} must be a multiple of num_heads={num_heads}.")
        if any(side % part for side, part in zip(size, patch, strict=True)):
            raise UserError(f"Patches of {patch} do not divide windows of {size}.")
        if size[1] % rows or size[2] % columns:
            raise UserError(f"A token grid of {rows}x{columns} does not divide windows of {size}.")
        self.hyperparameters = plain(
            size=size,
            patch=patch,
            rows=rows,
            columns=columns,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_codes=num_codes,
            channels=channels,
        )
        self.size, self.rows, self.columns = size, rows, columns
        strides = (size[0], size[1] // rows, size[2] // columns)
        self._spec = TokenSpec("discrete", num_codes, strides, causal=False)
        grid = (size[0] // patch[0], size[1] // patch[1], size[2] // patch[2])
        layers: dict[str, Any] = {"patch": patch, "num_tokens": rows * columns}
        self.encoder = Encoder(dim, depth, num_heads, num_patches=math.prod(grid), **layers)
        self.to_code = nn.Linear(dim, channels)
        self.embedding = nn.Embedding(num_codes, channels)
        self.from_code = nn.Linear(channels, dim)
        self.decoder = Decoder(dim, depth, num_heads, grid=grid, **layers)

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    @property
    def codes(self) -> Float[Tensor, "V c"]:
        """The code of each id, a unit vector."""
        return F.normalize(self.embedding.weight, dim=-1)

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError unless the frames have the one size that the network supports."""
        if (grid.h, grid.w) != (self.rows, self.columns):
            raise UserError(
                f"This tokenizer takes frames of {self.size[1]}x{self.size[2]} pixels only, "
                f"which are {self.rows}x{self.columns} tokens, not {grid.h}x{grid.w}."
            )

    def latents(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Unit vectors before quantisation, in float32.

        Raises UserError for frames of another size, and if the clip is not a whole number of windows.
        """
        self.check_grid(self.spec.grid(*video.shape[2:]))
        pixels = (video + 1) / 2  # the network uses [0, 1]
        windows = rearrange(pixels, "b c (t f) h w -> (b t) c f h w", f=self.size[0])
        vectors = self.to_code(self.encoder(windows))
        pattern = "(b t) (h w) c -> b t h w c"
        return F.normalize(rearrange(vectors, pattern, b=len(video), h=self.rows).float(), dim=-1)

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Int[Tensor, "b t h w"]:
        """Ids, 0 to `num_codes` - 1.

        Raises UserError for frames of another size, and if the clip is not a whole number of windows.
        """
        return nearest_codes(self.latents(video), self.codes.float())

    def indices_to_codes(self, indices: Int[Tensor, ...]) -> Float[Tensor, "... c"]:
        """The code of each id."""
        return F.embedding(indices, self.codes)

    def decode(self, tokens: Int[Tensor, "b t h w"]) -> Float[Tensor, "b 3 T H W"]:
        """Video in [-1, 1] (clamped). Raises UserError unless latent frames have the network's rows and columns."""
        self.check_grid(TokenGrid(*tokens.shape[1:]))
        codes = rearrange(self.indices_to_codes(tokens), "b t h w c -> (b t) (h w) c")
        windows = self.decoder(self.from_code(codes))
        video = rearrange(windows, "(b t) c f h w -> b c (t f) h w", b=len(tokens))
        return (2 * video - 1).clamp(-1, 1)
