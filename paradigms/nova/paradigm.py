"""NOVA (arXiv 2412.14169): autoregressive over frames, set by set inside a frame.

Temporal layers turn context and finished frames into an indicator of the next frame; spatial layers fill the
frame in random sets of tokens, each token drawn by the head. The defaults follow the released code where it
differs from the paper: a learned time code on stretched times, one BOV vector, norms on the branch outputs,
temporal patches twice the spatial ones, one order of sets per video. Different from it: padding and dropped conditions
are learned null tokens instead of a fixed table, and a dropped condition drops the motion score too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    SamplingOptions,
    Size,
    TokenGrid,
    Tokens,
    TokenSpec,
)
from arvid.nn.attention import NormPlacement
from arvid.nn.conditioner import ContextEmbedder
from arvid.nn.heads import DiffusionOptions, build_head
from arvid.nn.tokens import patchify, unpatchify
from arvid.paradigms.nova.schedule import draw_mask_ratio, random_orders, set_sizes
from arvid.paradigms.nova.spatial import SpatialLayers
from arvid.paradigms.nova.temporal import ScaleShift, TemporalLayers


class NOVA(Paradigm):
    """Temporal layers, scaling-and-shift, spatial layers, token head.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`. A third of `size.depth` is temporal, the
            rest spatial (d48 is 16 + 32).
        patch: side of the square of latents that is one token: by default 2 for continuous tokens, as
            released, and 1 for ids. The temporal layers see patches of twice that side.
        num_sets: sets a frame is generated in.
        scale_shift: rank of the scaling-and-shift layer, "full", or "off".
        norm: where the transformers' norms sit ("branch" as released).
        order: draw the order of tokens once per "video" (released code) or per "frame" (paper).
        condition_dropout: probability that a clip's condition is dropped in training.
        diffusion: the diffusion head's process (continuous tokens only).
    """

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
        order: Literal["video", "frame"] = "video",
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__()
        patch = patch or (2 if spec.type == "continuous" else 1)
        if grid.h % (2 * patch) or grid.w % (2 * patch):
            raise ValueError(
                f"NOVA with patch {patch} needs token grids whose sides are multiples of "
                f"{2 * patch}, not {grid.h}x{grid.w}"
            )
        self.spec = spec
        self.grid = grid
        self.patch = patch
        self.num_sets = num_sets
        self.order = order
        self.condition_dropout = condition_dropout
        self.context = ContextEmbedder(context, size.dim)
        self.temporal = TemporalLayers(
            spec,
            grid,
            size,
            depth=size.depth // 3,
            patch=2 * patch,
            norm=norm,
            scale_shift=scale_shift,
        )
        self.spatial = SpatialLayers(
            spec, grid, size, depth=size.depth - size.depth // 3, patch=patch, norm=norm
        )
        self.head = build_head(spec, size, diffusion, patch)

    @property
    def num_positions(self) -> int:
        """Tokens of a frame as the spatial layers and the head count them (patches)."""
        return self.grid.tokens_per_frame // self.patch**2

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Loss on masked tokens: `image` of first frames, `video` of later ones, and their sum.

        `per_token` is the mean over all masked tokens.
        """
        batch, num_frames = tokens.shape[:2]
        drop = torch.rand(batch, device=tokens.device) < self.condition_dropout
        context = self.context(condition, batch, drop if self.training else None)
        past = tokens[:, :-1] if num_frames > 1 else None
        indicators = self.temporal(context, past, num_frames).flatten(0, 1)  # (BT, L', D)
        frames = tokens.flatten(0, 1)  # (BT, h, w[, C])
        num_visible = round((1 - draw_mask_ratio()) * self.num_positions)
        orders = random_orders(len(frames), self.num_positions, tokens.device)
        visible, masked = orders[:, :num_visible], orders[:, num_visible:]
        hidden = self.spatial(indicators, frames, visible)
        losses = self.head.loss(_gather(hidden, masked), _gather(self._targets(frames), masked))
        per_frame = losses.unflatten(0, (batch, num_frames)).mean((0, 2))  # (T,)
        if num_frames == 1:
            return {"loss": per_frame[0], "image": per_frame[0], "per_token": per_frame[0].detach()}
        image, video = per_frame[0], per_frame[1:].mean()
        mean = per_frame.mean().detach()
        return {"loss": image + video, "image": image, "video": video, "per_token": mean}

    def _targets(self, frames: Tensor) -> Tensor:
        """Tokens as the head predicts them: ids (B, L) or patch vectors (B, L, p·p·C)."""
        if self.spec.type == "discrete":
            return frames.flatten(1)
        return patchify(frames, self.patch)

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        sets = (grid.t - prefix_frames) * len(set_sizes(self.num_positions, self.num_sets))
        counts = {"spatial layers": sets, "temporal layers": grid.t}
        if self.spec.type == "continuous":
            counts["diffusion head"] = sets * options.diffusion_steps
        return counts

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        grid: TokenGrid,
        *,
        batch_size: int = 1,
        prefix: Tokens | None = None,
        options: SamplingOptions = SamplingOptions(),
        generator: torch.Generator | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Tokens:
        batch = condition.batch_size or batch_size
        context = self.context.guided(condition, batch, options.guidance)
        indicators = _Indicators(self, context, grid.t, options)
        frames: list[Tensor] = [] if prefix is None else list(prefix.unbind(1))
        orders = self._orders(batch, context.device, generator)
        for t in range(grid.t):
            indicator = indicators.next(frames[:t])
            if t < len(frames):  # given: only the temporal layers had to see it
                continue
            if self.order == "frame" and t:
                orders = self._orders(batch, context.device, generator)
            frames.append(self._fill_frame(indicator, orders, options, generator, on_step))
        return torch.stack(frames, dim=1)

    def _orders(
        self, batch: int, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        return random_orders(batch, self.num_positions, device, generator)

    def _fill_frame(
        self,
        indicator: Tensor,
        orders: Tensor,
        options: SamplingOptions,
        generator: torch.Generator | None,
        on_step: Callable[[], None] | None,
    ) -> Tensor:
        """One frame (B, h, w[, C]), set by set; `indicator` may hold the null half of guidance behind."""
        batch, copies = len(orders), len(indicator) // len(orders)
        tokens = self._empty_targets(batch, orders.device)
        start = 0
        for size in set_sizes(self.num_positions, self.num_sets):
            known, new = orders[:, :start], orders[:, start : start + size]
            frame = self._to_frame(tokens)
            hidden = self.spatial(
                indicator, frame.repeat(copies, *(1,) * (frame.ndim - 1)), known.repeat(copies, 1)
            )
            hidden = _gather(hidden, new.repeat(copies, 1))
            drawn = self.head.sample(
                hidden[:batch],
                options=options,
                null_hidden=hidden[batch:] if copies == 2 else None,
                generator=generator,
            )
            index = new if tokens.ndim == 2 else new[..., None].expand_as(drawn)
            tokens = tokens.scatter(1, index, drawn)
            start += size
            if on_step is not None:
                on_step()
        return self._to_frame(tokens)

    def _empty_targets(self, batch: int, device: torch.device) -> Tensor:
        if self.spec.type == "discrete":
            return torch.zeros(batch, self.num_positions, dtype=torch.long, device=device)
        size = self.spec.size * self.patch**2
        return torch.zeros(batch, self.num_positions, size, device=device)

    def _to_frame(self, tokens: Tensor) -> Tensor:
        """Inverse of `_targets`."""
        if self.spec.type == "discrete":
            return tokens.unflatten(1, (self.grid.h, self.grid.w))
        return unpatchify(tokens, self.patch, self.grid.h)


class _Indicators:
    """Indicators of the frames one after another: from a cache, or anew from all frames."""

    def __init__(
        self, model: NOVA, context: Tensor, num_frames: int, options: SamplingOptions
    ) -> None:
        self.temporal = model.temporal
        self.context = context
        self.num_frames = num_frames
        self.anchor: Tensor | None = None
        length = context.shape[1] + num_frames * self.temporal.num_tokens
        self.caches = self.temporal.layers.new_caches(length) if options.use_cache else None

    def next(self, frames: list[Tensor]) -> Tensor:
        """Indicator (B, L', D) of the frame after `frames`; with guidance B counts both halves."""
        if self.caches is None:
            return self._anew(frames)
        frame = self._both_halves(frames[-1]) if frames else None
        out = self.temporal.step(self.context, frame, len(frames), self.num_frames, self.caches)
        if self.anchor is None:
            self.anchor = out
            return out
        return self.temporal.indicator(self.anchor, out)

    def _anew(self, frames: list[Tensor]) -> Tensor:
        past = torch.stack([self._both_halves(f) for f in frames], dim=1) if frames else None
        return self.temporal(self.context, past, self.num_frames)[:, -1]

    def _both_halves(self, frame: Tensor) -> Tensor:
        copies = len(self.context) // len(frame)
        return frame.repeat(copies, *(1,) * (frame.ndim - 1))


def _gather(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of (B, L) or (B, L, D) at (B, K) ids."""
    if x.ndim == 2:
        return x.gather(1, ids)
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))
