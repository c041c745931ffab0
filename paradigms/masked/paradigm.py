"""Masked prediction of a whole clip: MAGVIT (arXiv 2212.05199) on ids, MAR (2406.11838) on continuous tokens.

Training masks a random part of the clip and predicts it from the rest. Sampling begins with a masked clip, and each
evaluation of the network fills some more tokens. All tokens see each other, so nothing can be cached, and no frame is
finished before the last set. Given frames are never masked.

The defaults follow MAGVIT: cosine schedule, no encoder, 12 sets. Differences from MAGVIT: pre-norm, loss on masked
tokens only, output weights that are not tied to the embedding, no output bias, and context tokens instead of one class
token. `configs/paradigms/magvit.yaml` and `mar.yaml` have the published options.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenHead,
    Tokens,
    TokenSpec,
    UserError,
)
from arvid.nn.attention import NormPlacement
from arvid.nn.by_frame import losses_by_frame
from arvid.nn.conditioner import ContextEmbedder
from arvid.nn.draws import draw, draw_once
from arvid.nn.frame_conditions import FrameEmbedder
from arvid.nn.heads import HEADS, DiffusionOptions, build_head
from arvid.nn.heads.diffusion_process import with_head
from arvid.nn.linear import initialise_linear
from arvid.nn.masking import given_first, random_orders, read_tokens
from arvid.nn.tokens import empty_tokens, from_sequence, require_prefix, to_sequence
from arvid.paradigms.masked.network import MaskedNetwork
from arvid.paradigms.masked.sampling import ClipSampler, MaskedSampling
from arvid.paradigms.masked.schedule import Masking, draw_num_masked, masked_after
from arvid.ranges import SHARE, Range, at_least


class Masked(Paradigm):
    """A bidirectional transformer and a token head.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`.
        patch: side of the square of latents that is one token (continuous tokens only; ids are predicted singly).
        num_sets: number of sets of tokens in sampling, one evaluation each: 12 in MAGVIT, 64 or 256 in MAR.
        encoder_share: share of the layers that see only the known tokens: 0 in MAGVIT, 0.5 in MAR.
        masking: distribution of the masked share in training: "cosine" in MAGVIT, "truncated" in MAR. All clips of a
            batch have the same number of masked tokens.
        loss_on: "masked" tokens (MaskGIT, MAR), or "all" (MAGVIT).
        label_smoothing: label smoothing of the cross-entropy (discrete tokens only): 1e-4 in MAGVIT.
        prefix_share: share of the training steps that train continuation. The number of given latent frames is drawn
            uniformly. MAGVIT trains separate models for generation and continuation.
        context_copies: repetitions of the context in front of the tokens: 64 in MAR.
        rotary: add rotary positional embeddings over (t, h, w) to the learned ones. Neither published system has them.
        norm: position of the transformers' norms: "post" in MAGVIT, "pre" in MAR.
        dropout: dropout on residual branches of the transformers: 0.1 in both.
        condition_dropout: probability that a clip's condition is dropped in training.
        diffusion: the diffusion head's process (continuous tokens only).

    Raises UserError for values outside their ranges, and for a grid that the patches do not tile.
    """

    heads = HEADS
    options_class = MaskedSampling
    takes_frame_conditions = True
    is_causal = False
    compiled_method = "_loss_of"
    varying_lengths = True

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        patch: int = 1,
        num_sets: int = 12,
        encoder_share: float = 0.0,
        masking: Masking = "cosine",
        loss_on: Literal["masked", "all"] = "masked",
        label_smoothing: float = 0.0,
        prefix_share: float = 0.0,
        context_copies: int = 1,
        rotary: bool = False,
        norm: NormPlacement = "pre",
        dropout: float = 0.0,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__(spec, grid)
        at_least(1).require(patch=patch, num_sets=num_sets, context_copies=context_copies)
        SHARE.require(
            prefix_share=prefix_share, dropout=dropout, condition_dropout=condition_dropout
        )
        Range(0, 1, high_open=True).require(encoder_share=encoder_share)
        if grid.h % patch or grid.w % patch:
            raise UserError(
                f"Patches of {patch}x{patch} do not tile a token grid of {grid.h}x{grid.w}."
            )
        self.patch = patch
        self.num_sets = num_sets
        self.masking = masking
        self.loss_on = loss_on
        self.prefix_share = prefix_share
        self.context_copies = context_copies
        self.condition_dropout = condition_dropout
        self.context = ContextEmbedder(context, size.dim)
        self.frame_conditions = FrameEmbedder(context, size.dim)
        start = torch.randn(1, size.dim) * 0.02
        self.start = None if context.num_tokens else nn.Parameter(start)
        self.network = MaskedNetwork(
            spec,
            TokenGrid(grid.t, grid.h // patch, grid.w // patch),
            size,
            num_context=max(context.num_tokens, 1) * context_copies,
            encoder_depth=round(encoder_share * size.depth),
            patch=patch,
            rotary=rotary,
            norm=norm,
            dropout=dropout,
        )
        self.head: TokenHead = build_head(
            spec, size, diffusion, patch, label_smoothing=label_smoothing
        )
        initialise_linear(self)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens (patches) of a latent frame in the network."""
        return self.grid.tokens_per_frame // self.patch**2

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Mean loss; `per_token`: mean over the masked tokens; `frame_i`: mean over those of latent frame i."""
        batch, num_frames = tokens.shape[:2]
        share = draw(partial(torch.rand, device=tokens.device), [batch])
        drop = share < self.condition_dropout if self.training else None
        given = self._draw_given(num_frames)
        unknown = num_frames * self.tokens_per_frame - given
        return self._loss_of(tokens, condition, drop, given, draw_num_masked(self.masking, unknown))

    def _loss_of(
        self,
        tokens: Tokens,
        condition: Condition,
        drop: Tensor | None,
        given: int,
        num_masked: int,
    ) -> dict[str, Tensor]:
        """`loss`, with given numbers of tokens of the given frames, and of masked tokens."""
        batch, num_frames = tokens.shape[:2]
        context = self._copies(self.context(condition, batch, drop))
        of_frames = self.frame_conditions(condition, batch, num_frames, drop)
        sequence = to_sequence(tokens, self.spec, self.patch)  # (B, N[, C])
        num = sequence.shape[1]
        order = random_orders(batch, num - given, tokens.device)
        known = given_first(order[:, num_masked:], given)
        wanted = given + (order if self.loss_on == "all" else order[:, :num_masked])
        seen = read_tokens(sequence, known)
        hidden = self.network(context, seen, known, wanted, num, of_frames)
        losses = self.head.loss(hidden, read_tokens(sequence, wanted))  # (B, M)
        masked, frames = losses[:, :num_masked], wanted[:, :num_masked] // self.tokens_per_frame
        means = {"loss": losses.mean(), "per_token": masked.mean().detach()}
        return means | losses_by_frame(masked, frames, num_frames)

    def _draw_given(self, num_frames: int) -> int:
        """Number of tokens of the given latent frames of a training step."""
        if not self.training or num_frames == 1 or not self.prefix_share:
            return 0
        share, place = draw_once(lambda: torch.rand(2).tolist())
        frames = 1 + int(place * (num_frames - 1)) if share < self.prefix_share else 0
        return frames * self.tokens_per_frame

    def _copies(self, context: Float[Tensor, "b s d"]) -> Float[Tensor, "b cs d"]:
        """The repeated context. A model without conditions has a learned start token as context."""
        if self.start is not None:
            context = self.start.expand(len(context), 1, -1)
        return context.repeat(1, self.context_copies, 1)

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        own = self.own_options(options, MaskedSampling)
        unknown = (grid.t - prefix_frames) * self.tokens_per_frame
        sets = masked_after(unknown, own.num_sets or self.num_sets)
        return with_head({"transformer": len(sets)}, own)

    @torch.no_grad()
    def generate(self, request: Request) -> Tokens:
        """As `Paradigm.generate`. Raises UserError for clips longer than trained, and for a prefix of another shape."""
        grid, batch = request.grid, request.batch_size
        own = self.own_options(request.options, MaskedSampling)
        if grid.t > self.grid.t:
            raise UserError(
                f"{grid.t} latent frames were asked of a model with positions for {self.grid.t}: "
                "it cannot go beyond its training length."
            )
        context = self._copies(self.context.guided(request.condition, batch, own.guided))
        clips = empty_tokens(self.spec, grid, batch, context.device)
        if request.prefix is not None:
            require_prefix(request.prefix, self.spec, self.grid, batch)
            clips[:, : request.prefix_frames] = request.prefix
        passes = len(context) // batch
        of_frames = self.frame_conditions.guided(request.condition, batch, grid.t, passes)
        tokens = to_sequence(clips, self.spec, self.patch)
        given = request.prefix_frames * self.tokens_per_frame
        drawn = ClipSampler(self, context, of_frames, own, request).fill(tokens, given)
        return from_sequence(drawn, self.spec, self.patch, grid)
