"""NOVA (arXiv 2412.14169): autoregressive over frames, and over sets of tokens inside a frame.

Temporal layers turn context and finished frames into an indicator of the next frame. Spatial layers fill the frame in
random sets of tokens; the head samples each token. Where paper and released code differ, defaults follow the code: a
learned embedding of scaled times, one BOV vector, norms on branch outputs, temporal patches twice as wide as spatial
ones, one token order per video. Default difference from the code (removed by `nulls: table`): padding and dropped
conditions are learned null tokens instead of rows of a fixed table, and dropping a condition also drops the motion
score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    Tokens,
    TokenSpec,
    UserError,
)
from arvid.nn.attention import NormPlacement, set_stochastic_depth
from arvid.nn.by_frame import without_view
from arvid.nn.conditioner import ContextEmbedder, warn_once
from arvid.nn.draws import draw, draw_once
from arvid.nn.frame_conditions import FrameEmbedder
from arvid.nn.heads import HEADS, DiffusionOptions, build_head
from arvid.nn.heads.diffusion_process import with_head
from arvid.nn.masking import draw_mask_ratio, random_orders, read_tokens
from arvid.nn.tokens import from_patches, to_patches
from arvid.paradigms.nova.context import PublishedContext
from arvid.paradigms.nova.sampling import ClipSampler, NovaSampling, Order, same_order, set_sizes
from arvid.paradigms.nova.spatial import SpatialLayers
from arvid.paradigms.nova.temporal import ScaleShift, TemporalLayers
from arvid.ranges import SHARE, at_least

Part = Literal["text_norm", "motion", "time", "temporal_patch"]


class NOVA(Paradigm):
    """Temporal layers, scaling-and-shift, spatial layers, token head.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`. A third of `size.depth` is temporal, the rest spatial
            (d48 is 16 + 32).
        patch: side of the square of latents that is one token; by default 2 for continuous tokens, as released, and 1
            for ids. Patches of the temporal layers have twice this side.
        num_sets: number of sets of tokens per frame in sampling.
        scale_shift: rank of the scaling-and-shift layer, "full", or "off".
        norm: position of the transformers' norms ("branch" as released).
        order: draw a token order once per "video" (released code) or per "frame" (paper); or use one order for all
            frames, "raster" or "fixed" (a random one). With these two, training shows the tokens of the first sets of
            sampling, and their number is drawn uniformly.
        history: earlier frames in training, as the temporal layers see them: "complete", or "corrupted", without the
            tokens that are masked in them (masked teacher forcing in MAGI, arXiv 2501.12389). Sampling always shows
            complete frames.
        tam: temporal autoregressive modelling. Without it (the paper's ablation), the temporal layers see the known
            tokens of all frames in both directions, and each set of tokens is spread over the whole clip.
        nulls: padding of prompts, and replacement of absent conditions: "learned" tokens, or the fixed "table" of the
            released code (see `arvid.paradigms.nova.context`).
        base_frames: range, in latent frames, to which the times of a clip are scaled: by default the trained length; 16
            in the released video model.
        frozen: parts that are not trained. The released trainers freeze text_norm and motion; for images also time and
            temporal_patch.
        dropout: dropout on residual branches of the transformers (none in the released code).
        stochastic_depth: probability that training skips a residual branch of the last block; it rises linearly from
            the first block (none in the released code).
        condition_dropout: probability that a clip's condition is dropped in training.
        diffusion: options of the diffusion head (continuous tokens only).

    Raises UserError for values outside their ranges, and for a grid that the patches do not tile.
    """

    heads = HEADS
    options_class = NovaSampling
    takes_frame_conditions = True
    compiled_method = "_loss_of"
    varying_lengths = True

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        patch: int | None = None,
        num_sets: int = 64,
        scale_shift: ScaleShift = 24,
        norm: NormPlacement = "branch",
        order: Order = "video",
        history: Literal["complete", "corrupted"] = "complete",
        tam: bool = True,
        nulls: Literal["learned", "table"] = "learned",
        base_frames: int | None = None,
        frozen: Sequence[Part] = (),
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__(spec, grid)
        at_least(1).require(patch=patch, num_sets=num_sets, base_frames=base_frames)
        if not isinstance(scale_shift, str):
            at_least(1).require(scale_shift=scale_shift)
        SHARE.require(
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            condition_dropout=condition_dropout,
        )
        patch = patch or (2 if spec.type == "continuous" else 1)
        if grid.h % (2 * patch) or grid.w % (2 * patch):
            raise UserError(
                f"NOVA with patch {patch} needs token grids whose sides are multiples of "
                f"{2 * patch}, not {grid.h}x{grid.w}."
            )
        self.patch = patch
        self.num_sets = num_sets
        self.scale_shift = scale_shift
        self.norm = norm
        self.order = order
        if history == "corrupted" and not tam:
            raise UserError(
                "Without temporal autoregression (tam) the history is always corrupted: leave out history."
            )
        self.history = history
        self.tam = tam
        self.condition_dropout = condition_dropout
        embedder = PublishedContext if nulls == "table" else ContextEmbedder
        self.context = embedder(context, size.dim)
        self.frame_conditions = FrameEmbedder(context, size.dim)
        self.temporal = TemporalLayers(
            spec,
            grid,
            size,
            depth=size.depth // 3,
            patch=2 * patch,
            norm=norm,
            dropout=dropout,
            scale_shift=scale_shift,
            base_frames=base_frames or grid.t,
            causal=tam,
        )
        self.spatial = SpatialLayers(
            spec,
            grid,
            size,
            depth=size.depth - size.depth // 3,
            patch=patch,
            norm=norm,
            dropout=dropout,
        )
        if stochastic_depth:
            stacks = (self.temporal.layers, self.spatial.encoder, self.spatial.decoder)
            set_stochastic_depth(stacks, stochastic_depth)
        self.head = build_head(spec, size, diffusion, patch)
        self.same_order: Tensor | None
        self.register_buffer("same_order", same_order(order, self.num_positions))
        for part in frozen:
            self._freeze(part)

    @property
    def num_positions(self) -> int:
        """Number of tokens (patches) of a frame in the spatial layers and the head."""
        return self.grid.tokens_per_frame // self.patch**2

    def _freeze(self, name: Part) -> None:
        try:
            parts = _PARTS[name](self)
        except AttributeError as error:
            raise UserError(
                f"NOVA cannot freeze {name}: without that condition it has no such part."
            ) from error
        for part in parts:
            part.requires_grad_(False)

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Loss on masked tokens: `image` for first frames, `video` for later frames, and `loss`, their sum.

        `per_token` is the mean over all masked tokens, and `frame_i` over those of each latent frame.
        """
        drop = draw(partial(torch.rand, device=tokens.device), tokens.shape[:1])
        dropped = drop < self.condition_dropout if self.training else None
        return self._loss_of(tokens, condition, dropped, draw_once(self._draw_num_visible))

    def _loss_of(
        self, tokens: Tokens, condition: Condition, dropped: Tensor | None, num_visible: int
    ) -> dict[str, Tensor]:
        """`loss`, with a given number of visible tokens. `dropped` (B,) is True for clips without condition."""
        batch, num_frames = tokens.shape[:2]
        context = self.context(condition, batch, dropped)
        frame_conditions = self.frame_conditions(condition, batch, num_frames, dropped)
        patches = to_patches(tokens.flatten(0, 1), self.spec, self.patch)  # (BT, L[, p·p·C])
        orders = self.orders(len(patches), tokens.device)
        visible, masked = orders[:, :num_visible], orders[:, num_visible:]
        indicators = self._training_indicators(  # (1, B, T, L', D)
            context[None],
            tokens,
            visible,
            None if frame_conditions is None else frame_conditions[None],
        )
        hidden = self.spatial(
            indicators.flatten(1, 2), read_tokens(patches, visible), visible, masked
        )
        losses = self.head.loss(hidden[0], read_tokens(patches, masked))
        per_frame = losses.unflatten(0, (batch, num_frames)).mean((0, 2))  # (T,)
        image = without_view(per_frame[0])
        if num_frames == 1:
            return {"loss": image, "image": image, "per_token": image.detach()}
        video = per_frame[1:].mean()
        mean = per_frame.mean().detach()
        by_frame = {f"frame_{i}": without_view(loss) for i, loss in enumerate(per_frame.detach())}
        return {
            "loss": image + video,
            "image": image,
            "video": video,
            "per_token": mean,
            **by_frame,
        }

    def _draw_num_visible(self) -> int:
        """Tokens of a frame that a training step shows."""
        if self.same_order is None:
            return round((1 - draw_mask_ratio()) * self.num_positions)
        sizes = set_sizes(self.num_positions, self.num_sets)
        return sum(sizes[: int(torch.randint(len(sizes), ()))])

    def orders(
        self,
        num: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Int[Tensor, "num l"]:
        """The order in which the tokens of each of `num` frames are shown or drawn. `dtype`: see `random_orders`."""
        if self.same_order is not None:
            return self.same_order.expand(num, -1)
        return random_orders(num, self.num_positions, device, generator, dtype)

    def _training_indicators(
        self,
        context: Tensor,
        tokens: Tokens,
        visible: Tensor,
        frame_conditions: Tensor | None,
    ) -> Tensor:
        num_frames = tokens.shape[1]
        known = self.known_mask(visible).unflatten(0, tokens.shape[:2])
        if not self.tam:
            return self.temporal.whole_clip(context, tokens, known, frame_conditions)
        out = self.temporal(
            context,
            tokens[:, :-1] if num_frames > 1 else None,
            num_frames,
            frame_conditions=frame_conditions,
            known=known[:, :-1] if self.history == "corrupted" else None,
        )
        return self.temporal.indicators(out, frame_conditions)

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        own = self.own_options(options, NovaSampling)
        frames = grid.t - prefix_frames if self.tam else 1
        sets = frames * len(set_sizes(self.num_positions, own.num_sets or self.num_sets))
        counts = {"spatial layers": sets, "temporal layers": frames if self.tam else sets}
        return with_head(counts, own)

    @torch.no_grad()
    def stream(self, request: Request) -> Iterator[Tokens]:
        """As `Paradigm.stream`. Without temporal autoregression (`tam`), all frames are finished at the same time."""
        options = self.own_options(request.options, NovaSampling)
        batch, num_frames = request.batch_size, request.grid.t
        context = self._contexts(request.condition, batch, options)
        conditions = self._frame_conditions(request.condition, batch, num_frames, len(context))
        sampler = ClipSampler(self, context, conditions, options, request)
        given: list[Tensor] = []
        if request.prefix is not None:
            given = list(request.prefix.unbind(1))
            yield request.prefix
        if not self.tam:
            yield sampler.all_at_once(given)
            return
        for frame in sampler.frame_by_frame(given):
            yield frame[:, None]

    def _contexts(self, condition: Condition, batch: int, options: NovaSampling) -> Tensor:
        """Context (P, B, S, D) of each pass of guidance."""
        if options.overlap is not None and not self.tam:
            raise UserError(
                "Without temporal autoregression there is no moving window: leave out overlap."
            )
        context = self.context(condition, batch)
        passes = 1 + (options.guided and not self.context.spec.is_empty)
        if options.guided and passes == 1:
            warn_once("Guidance has no effect: this model has no conditions.")
        if options.image_guidance and options.guided:
            if self.spec.type == "discrete" or not self.tam:
                raise UserError(
                    "Image guidance needs continuous tokens and temporal autoregression: leave it at 0 here."
                )
            passes = 3
        null = [self.context.negative(condition, batch)] if passes > 1 else []
        return torch.stack([context, *null * (passes - 1)])

    def _frame_conditions(
        self, condition: Condition, batch: int, num_frames: int, passes: int
    ) -> Tensor | None:
        """Embedded conditions per frame (P, B, T, D) for each pass of guidance: null in all but the first."""
        given = self.frame_conditions(condition, batch, num_frames)
        if given is None:
            return None
        null = self.frame_conditions(Condition(), batch, num_frames)
        return torch.stack([given, *[null] * (passes - 1)])

    # Tokens of frames

    def empty_tokens(self, num: int, device: torch.device) -> Tensor:
        """Zeros for the tokens of `num` frames: (N, L) ids or (N, L, p·p·C) vectors."""
        if self.spec.type == "discrete":
            return torch.zeros(num, self.num_positions, dtype=torch.long, device=device)
        return torch.zeros(num, self.num_positions, self.spec.size * self.patch**2, device=device)

    def to_frames(self, tokens: Tensor) -> Tensor:
        """Frames (N, h, w[, C]) of tokens (N, L[, p·p·C])."""
        return from_patches(tokens, self.spec, self.patch, self.grid.h)

    def known_mask(self, known: Int[Tensor, "n k"]) -> Bool[Tensor, "n h w"]:
        """True at the latents of the tokens with indices `known`."""
        mask = torch.zeros(len(known), self.num_positions, dtype=torch.bool, device=known.device)
        mask = mask.scatter(1, known, True).unflatten(1, (self.grid.h // self.patch, -1))
        return mask.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)


_PARTS: dict[Part, Callable[[NOVA], list[nn.Module]]] = {
    "text_norm": lambda net: [net.context.get_submodule("text.1")],
    "motion": lambda net: [
        net.context.get_submodule("motion"),
        *(module for name, module in net.context.named_children() if name == "fps"),
    ],
    "time": lambda net: [net.temporal.time],
    "temporal_patch": lambda net: [net.temporal.patch],
}
