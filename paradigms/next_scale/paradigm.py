"""Next-scale prediction of video: frames in order, and the scales of each frame from coarse to fine.

After VAR (arXiv 2404.02905): one evaluation of the network samples all tokens of a scale, given all earlier scales and
frames. Differences from VAR: the scales are made from the tokens of an ordinary tokenizer (see `scales`), so every
tokenizer and both token types work; a diffusion head samples the scales of continuous tokens; positional embeddings are
learned and also rotary over (t, h, w); the context is in front of the sequence and does not modulate the norms.

The input of every scale includes the previous frame, reduced to that scale.

B clips, t latent frames, K scales, P positions of a frame over all scales, S context tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

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
)
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import Transformer
from arvid.nn.by_frame import losses_by_frame
from arvid.nn.conditioner import ContextEmbedder
from arvid.nn.draws import draw, randn_like
from arvid.nn.frame_conditions import FrameEmbedder
from arvid.nn.heads import HEADS, DiffusionOptions, build_head
from arvid.nn.heads.diffusion_process import with_head
from arvid.nn.linear import initialise_linear
from arvid.nn.positions import RotaryTable
from arvid.nn.tokens import TokenEmbedding, require_prefix
from arvid.paradigms.next_scale.resize import centres, enlarge, shrink
from arvid.paradigms.next_scale.sampling import ClipSampler, NextScaleSampling
from arvid.paradigms.next_scale.scales import ScaleRms, Scales, check_sides, default_sides
from arvid.ranges import SHARE


class NextScale(Paradigm):
    """A block-causal transformer over the scales of all frames, and a token head.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`.
        scales: (rows, columns) of each scale, the last being the token grid's. By default the grid's sides are halved
            until one of them is 1. VAR has ten for 16x16: 1, 2, 3, 4, 5, 6, 8, 10, 13, 16.
        corruption: self-correction (arXiv 2412.04431): training adds errors to the earlier scales of a frame, and the
            network learns to correct them. For each scale a share is drawn between 0 and this value. This share of
            the ids is random; continuous tokens get noise with this share of their standard deviation. 0: no errors.
        dropout: dropout on residual branches of the transformer.
        condition_dropout: probability that a clip's condition is dropped in training.
        diffusion: options of the diffusion head (continuous tokens only).

    Raises UserError for values outside their ranges, and for scales that do not grow to the grid.
    """

    heads = HEADS
    options_class = NextScaleSampling
    takes_frame_conditions = True
    compiled_method = "_loss_of"
    blocks: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        scales: tuple[tuple[int, int], ...] | None = None,
        corruption: float = 0.0,
        dropout: float = 0.0,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__(spec, grid)
        SHARE.require(corruption=corruption, dropout=dropout, condition_dropout=condition_dropout)
        sides = default_sides(grid) if scales is None else check_sides(scales, grid)
        self.scales = Scales(spec, sides)
        self.corruption = corruption
        self.condition_dropout = condition_dropout
        self.context = ContextEmbedder(context, size.dim)
        self.frame_conditions = FrameEmbedder(context, size.dim)
        self.embed = TokenEmbedding(spec, size.dim)
        self.embed_before = TokenEmbedding(spec, size.dim)
        self.start = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(self.frame_length, size.dim) * 0.02)
        self.transformer = Transformer(
            size.dim, size.depth, size.num_heads, norm="pre", dropout=dropout
        )
        self.norm = nn.LayerNorm(size.dim)
        self.head: TokenHead = build_head(spec, size, diffusion)
        # The attribute's name is part of the names in checkpoints (`spread.values`).
        self.spread = ScaleRms(len(sides)) if spec.type == "continuous" else None
        coordinates = self._coordinates()
        self.rotary = RotaryTable(coordinates[:, 1:], size.dim // size.num_heads)
        self.register_buffer("blocks", coordinates[:, 0], persistent=False)
        self._masks: dict[tuple[int, torch.device], BlockCausal] = {}
        initialise_linear(self)

    @property
    def frame_length(self) -> int:
        """P, the number of positions of a frame."""
        return sum(self.scales.num_positions)

    def _coordinates(self) -> Tensor:
        """Attention block, time, row and column (L, 4) of each position of the longest sequence.

        A token of a coarse scale has the row and column of its area's centre. Context tokens have times before 0.
        """
        context = [(0, i, 0, 0) for i in range(-self.context.spec.num_tokens, 0)]
        first = torch.tensor(context, dtype=torch.long, device="cpu").view(-1, 4)
        parts, whole, cpu = [first], (self.grid.h, self.grid.w), torch.device("cpu")
        for t in range(self.grid.t):
            for k, side in enumerate(self.scales.sides):
                rows, columns = (centres(n, new, cpu) for n, new in zip(whole, side, strict=True))
                block = torch.tensor([1 + t * len(self.scales.sides) + k], device="cpu")
                time = torch.tensor([t], device="cpu")
                parts.append(torch.cartesian_prod(block, time, rows, columns))
        return torch.cat(parts)

    # The sequence

    def inputs(
        self, shown: Sequence[Tensor], before: Tensor, first: int = 0
    ) -> Float[Tensor, "n p d"]:
        """Input vectors of the scales `first` to len(shown) of N frames, one scale after another.

        Args:
            shown: inputs of the scales after the first (see `Scales.shown`).
            before: the previous frame of each frame (N, h, w, D), embedded.
            first: index of the first scale in the result.
        """
        parts = []
        for k in range(first, len(shown) + 1):
            x = shrink(before, self.scales.sides[k])
            if k:
                x = x + self._embed_shown(shown[k - 1], k)
            parts.append(x.flatten(1, 2))
        length = sum(self.scales.num_positions[: len(shown) + 1])
        x = torch.cat(parts, dim=1)
        return x + self.positions[length - x.shape[1] : length]

    def _embed_shown(self, shown: Tensor, k: int) -> Float[Tensor, "n i j d"]:
        x: Tensor = self.embed(shown)
        if self.spec.type == "continuous":
            return x
        return shrink(enlarge(x, self.scales.sides[-1]), self.scales.sides[k])

    def before(self, frames: Tokens | None, batch: int) -> Float[Tensor, "b t1 h w d"]:
        """The embedded previous frame of each of t + 1 frames, from the first t frames (B, t, h, w[, C]).

        The first frame has none: all its vectors are a learned start vector.
        """
        start = self.start.expand(batch, 1, self.grid.h, self.grid.w, -1)
        if frames is None:
            return start
        embedded = self.embed_before(frames)
        return torch.cat([start.to(embedded.dtype), embedded], dim=1)

    def mask(self, length: int) -> BlockCausal:
        """Block-causal mask of the first `length` positions. The last one is kept, with its kernels' masks."""
        key = (length, self.blocks.device)
        if key not in self._masks:
            self._masks = {key: BlockCausal(self.blocks[:length])}
        return self._masks[key]

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Mean loss over the tokens of all scales, and means over parts of them.

        `per_token`: the last scale, whose tokens the other paradigms predict too. (For continuous tokens it is the last
        residual, scaled to unit variance.) `scale_k`: one scale. `frame_i`: the last scale of one latent frame.
        """
        batch, num_frames = tokens.shape[:2]
        drop = None
        if self.training:
            drop = draw(partial(torch.rand, device=tokens.device), [batch]) < self.condition_dropout
        corrupt = self._corrupt if self.training and self.corruption else None
        split = self.scales.split(tokens.flatten(0, 1), corrupt)
        target = self._normalised(split.targets).unflatten(0, (batch, num_frames)).flatten(1, 2)
        return self._loss_of(tokens, condition, drop, split.shown, target)

    def _loss_of(
        self,
        tokens: Tokens,
        condition: Condition,
        drop: Tensor | None,
        shown: list[Tensor],
        target: Tensor,
    ) -> dict[str, Tensor]:
        """`loss`, with given inputs of all scales, and targets (B, T·P[, C])."""
        batch, num_frames = tokens.shape[:2]
        context = self.context(condition, batch, drop)
        before = self.before(tokens[:, :-1] if num_frames > 1 else None, batch)
        x = self.inputs(shown, before.flatten(0, 1)).unflatten(0, (batch, num_frames))
        of_frames = self.frame_conditions(condition, batch, num_frames, drop)  # (B, t, D)
        if of_frames is not None:
            x = x + of_frames[:, :, None]
        x = torch.cat([context.to(x.dtype), x.flatten(1, 2)], dim=1)
        x = self.transformer(x, self.mask(x.shape[1]), rotation=self.rotary(0, x.shape[1]))
        hidden = self.norm(x[:, context.shape[1] :])
        losses = self.head.loss(hidden, target)
        return self._means(losses.unflatten(1, (num_frames, -1)))

    def end_step(self) -> None:
        if self.spread is not None:
            self.spread.end_step()

    def _normalised(self, targets: list[Tensor]) -> Tensor:
        """Targets of all scales in one sequence (N, P[, C]). Continuous tokens are divided by their scale's RMS."""
        if self.spread is not None:
            if self.training:
                self.spread.measure(targets)
            pairs = zip(targets, self.spread.values.float(), strict=True)
            targets = [target / rms for target, rms in pairs]
        return torch.cat([target.flatten(1, 2) for target in targets], dim=1)

    def _corrupt(self, tokens: Tensor, k: int) -> Tensor:
        """Tokens of scale k (N, h_k, w_k[, C]) with random errors."""
        uniform = partial(torch.rand, device=tokens.device)
        share = self.corruption * draw(uniform, [len(tokens), 1, 1])
        if self.spread is not None:
            # Random numbers fill memory in order, so a transposed tensor would get them at other tokens.
            noise = randn_like(tokens.contiguous())
            return tokens + share[..., None] * self.spread.values[k].float() * noise
        wrong = draw(uniform, tokens.shape) < share
        ids = (draw(uniform, tokens.shape) * self.spec.size).long().clamp_max(self.spec.size - 1)
        return torch.where(wrong, ids, tokens)

    def _means(self, losses: Float[Tensor, "b t p"]) -> dict[str, Tensor]:
        num_frames = losses.shape[1]
        by_scale = losses.detach().split(self.scales.num_positions, dim=2)
        index = torch.arange(num_frames, device=losses.device)[None, :, None]
        frames = index.expand_as(by_scale[-1]).flatten(1)
        return {
            "loss": losses.mean(),
            "per_token": by_scale[-1].mean(),
            **{f"scale_{k}": part.mean() for k, part in enumerate(by_scale)},
            **losses_by_frame(by_scale[-1].flatten(1), frames, num_frames),
        }

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        own = self.own_options(options, NextScaleSampling)
        steps = (grid.t - prefix_frames) * len(self.scales.sides)
        return with_head({"transformer": steps}, own)

    @torch.no_grad()
    def stream(self, request: Request) -> Iterator[Tokens]:
        """As `Paradigm.stream`.

        Raises UserError for a prefix of another shape, and for an overlap that leaves no new frame in a window.
        """
        options = self.own_options(request.options, NextScaleSampling)
        given: list[Tensor] = []
        if request.prefix is not None:
            require_prefix(request.prefix, self.spec, self.grid, request.batch_size)
            given = list(request.prefix.unbind(1))
        condition, batch = request.condition, request.batch_size
        context = self.context.guided(condition, batch, options.guided)
        passes = len(context) // batch
        of_frames = self.frame_conditions.guided(condition, batch, request.grid.t, passes)
        new = ClipSampler(self, context, of_frames, options, request).frames(given)
        if request.prefix is not None:
            yield request.prefix
        for frame in new:
            yield frame[:, None]
