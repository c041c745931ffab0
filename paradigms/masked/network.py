"""The bidirectional network over a whole clip: every token sees all known tokens.

Without an encoder it is MAGVIT's network: context, known tokens and mask tokens pass all layers. With an encoder it is
MAR's: the first layers see only the context and the known tokens, the other layers also the mask tokens.

B clips, P passes of guidance, S context tokens, K known tokens, M wanted tokens, N tokens of a clip.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arvid.contracts import Size, TokenGrid, TokenSpec
from arvid.nn.attention import NormPlacement, Transformer
from arvid.nn.masking import given_first
from arvid.nn.positions import RotaryGrid, Rotation, rotation_of
from arvid.nn.tokens import TokenEmbedding

NORM_EPS = 1e-6  # as in MAR; 1e-12 in MAGVIT


class Encoder(nn.Module):
    """Layers over the context and the known tokens, and a linear map to the decoder's inputs.

    Each of the `num_positions` (S + N) has a learned vector.
    """

    def __init__(self, layers: Transformer, dim: int, num_positions: int) -> None:
        super().__init__()
        self.positions = _positions(num_positions, dim)
        self.norm_in = nn.LayerNorm(dim, eps=NORM_EPS)
        self.layers = layers
        self.norm_out = nn.LayerNorm(dim, eps=NORM_EPS)
        self.project = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b k d"], ids: Int[Tensor, "b k"], rotation: Rotation | None
    ) -> Float[Tensor, "b k d"]:
        """`ids` are the positions of context and known tokens; `rotation` are their rotary embeddings."""
        x = self.norm_in(x + self.positions[ids])
        out: Tensor = self.project(self.norm_out(self.layers(x, rotation=rotation)))
        return out


class MaskedNetwork(nn.Module):
    """Known tokens and the context -> hidden states at the wanted positions.

    `grid` is the grid of the longest clip, in patches. `num_context` is S. `encoder_depth` of the `size.depth` layers
    belong to the encoder; 0: no encoder. For the other arguments see `Masked`.
    """

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        size: Size,
        *,
        num_context: int,
        encoder_depth: int,
        patch: int,
        rotary: bool,
        norm: NormPlacement,
        dropout: float,
    ) -> None:
        super().__init__()
        dim, num_positions = size.dim, num_context + grid.num_tokens
        if spec.type == "continuous":
            spec = dataclasses.replace(spec, size=spec.size * patch**2)
        self.embed = TokenEmbedding(spec, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        layers = partial(
            Transformer,
            dim,
            num_heads=size.num_heads,
            norm=norm,
            dropout=dropout,
            norm_eps=NORM_EPS,
        )
        self.encoder: Encoder | None = None
        self.norm_in: nn.Module = nn.Identity()
        if encoder_depth:
            self.encoder = Encoder(layers(encoder_depth), dim, num_positions)
            self.head_positions = _positions(grid.num_tokens, dim)
        else:
            self.norm_in = nn.LayerNorm(dim, eps=NORM_EPS)
        self.positions = _positions(num_positions, dim)
        self.layers = layers(size.depth - encoder_depth)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.rotary = RotaryGrid(num_context, grid, dim // size.num_heads) if rotary else None

    def forward(
        self,
        context: Float[Tensor, "pb s d"],
        tokens: Tensor,
        known: Int[Tensor, "b k"],
        wanted: Int[Tensor, "b m"],
        num_tokens: int,
        frame_conditions: Float[Tensor, "pb t d"] | None = None,
    ) -> Float[Tensor, "pb m d"]:
        """Hidden states at the wanted positions.

        Args:
            context: context tokens of each guidance pass, one after another.
            tokens: known tokens of each clip (B, K[, C]), the same for all passes; K may be 0.
            known: raster indices of the known tokens in the clip.
            wanted: raster indices of the tokens to predict.
            num_tokens: N, the number of tokens of these clips.
            frame_conditions: embedded conditions per frame, added to all tokens of the frame.
        """
        num, passes = context.shape[1], len(context) // len(known)
        known, wanted = known.repeat(passes, 1), num + wanted.repeat(passes, 1)
        # Positions in the whole sequence: 0..S-1 of the context, then S + index of each known token.
        ids = given_first(known, num)
        x = torch.cat([context, self.embed(tokens).repeat(passes, 1, 1)], dim=1)
        length = num + num_tokens
        turns = None if self.rotary is None else self.rotary(0, length)
        if self.encoder is not None:
            x = self.encoder(x, ids, None if turns is None else rotation_of(turns, ids))
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), length, -1)
        # All positions: mask tokens, replaced by the vectors of context and known tokens.
        x = mask_tokens.scatter(1, ids[..., None].expand_as(x), x) + self.positions[:length]
        if frame_conditions is not None:
            per_frame = num_tokens // frame_conditions.shape[1]
            of_tokens = frame_conditions.repeat_interleave(per_frame, dim=1)
            x = torch.cat([x[:, :num], x[:, num:] + of_tokens], dim=1)
        x = self.norm(self.layers(self.norm_in(x), wanted=wanted, rotation=turns))
        return x if self.encoder is None else x + self.head_positions[wanted - num]


def _positions(num: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(num, dim) * 0.02)
