"""NOVA's sampling: frame by frame, or all frames at once (the ablation without temporal autoregression).

The tokens of a frame are sampled in sets at random positions. B clips, P passes of guidance, L tokens of a frame, L'
tokens of an indicator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import Request, SamplingOptions, UserError
from arvid.nn.attention import KVCache
from arvid.nn.cuda_graph import CudaGraphs, graphs_of, may_capture
from arvid.nn.heads.diffusion import DiffusionHead, WholeFrame
from arvid.nn.masking import read_tokens, write_tokens
from arvid.nn.tokens import to_patches
from arvid.options import option
from arvid.paradigms.nova.temporal import add_frame_conditions
from arvid.ranges import FINITE, at_least

if TYPE_CHECKING:
    from arvid.paradigms.nova.paradigm import NOVA

Indicators = Callable[[Tensor, Tensor], Tensor]
"""(tokens so far, indices of known tokens) -> indicators (P, B, L', D)."""
Order = Literal["video", "frame", "raster", "fixed"]
"""Order of the tokens: drawn for each video or each frame, or the same for all frames (raster, fixed)."""


@dataclass(frozen=True, kw_only=True)
class NovaSampling(SamplingOptions):
    """NOVA's sampling options."""

    num_sets: int | None = option(None, at_least(1))
    """Number of sets of tokens per frame; by default that of the model."""
    overlap: int | None = option(None, at_least(1))
    """Clips longer than trained: use a moving window of the trained length. Each new window starts with this number of
    finished latent frames. By default one window covers the whole clip, as published."""
    guidance_min: float | None = option(None, FINITE)
    """Guidance of a frame's first set, from which it changes linearly to `guidance` at the last set. By default it is
    constant."""
    image_guidance: float = option(0.0, FINITE)
    """Continuous tokens: scale of guidance by the earlier frames. It needs a third pass, with the frames but without
    text."""
    whole_noise: bool = False
    """Continuous tokens: draw noise for whole frames, in the order of the published code, although only some tokens
    need it."""
    as_published: bool = False
    """Compute as the published code where that differs (docs/nova.md lists it): noise for whole frames, coefficients of
    DDPM in float32, random numbers in the model's precision, no guidance at scales of 1 or less, a constant guidance
    for a `guidance_min` of 0, pixels truncated to bytes."""

    @property
    def guided(self) -> bool:
        if self.as_published:
            return self.guidance > 1
        return super().guided or self.guidance_min is not None or self.image_guidance != 0

    @property
    def ramp_start(self) -> float | None:
        """Guidance of a frame's first set; None if guidance is constant."""
        return None if self.as_published and self.guidance_min == 0 else self.guidance_min

    @property
    def truncates_pixels(self) -> bool:
        return self.as_published


@dataclass(frozen=True)
class ClipSampler:
    """Samples the clips of one request."""

    model: NOVA
    context: Float[Tensor, "p b s d"]
    frame_conditions: Float[Tensor, "p b t d"] | None
    """Embedded conditions per frame."""
    options: NovaSampling
    request: Request

    @property
    def num_frames(self) -> int:
        """Number of latent frames of a clip."""
        return self.request.grid.t

    def frame_by_frame(self, prefix: list[Tensor]) -> Iterator[Tensor]:
        """Yield the frames (B, h, w[, C]) after the prefix, each as soon as it is finished."""
        frames, window = list(prefix), _Window(self)
        orders: Tensor | None = None
        while len(frames) < self.num_frames:
            indicator = window.indicator(frames)
            if orders is None or self.model.order == "frame":
                orders = self._orders(self.context.shape[1])
            tokens = self._fill(orders, lambda *_, indicator=indicator: indicator)
            frames.append(self.model.to_frames(tokens))
            yield frames[-1]

    def all_at_once(self, prefix: list[Tensor]) -> Tensor:
        """All frames (B, T', h, w[, C]) after the prefix. Each set is spread over all of them."""
        model, batch, new = self.model, self.context.shape[1], self.num_frames - len(prefix)
        given = torch.stack(prefix, dim=1) if prefix else None

        def indicators(tokens: Tensor, known: Tensor) -> Tensor:
            frames = model.to_frames(tokens).unflatten(0, (batch, new))
            mask = model.known_mask(known).unflatten(0, (batch, new))
            if given is not None:
                frames = torch.cat([given, frames], dim=1)
                mask = torch.cat([mask.new_ones(given.shape[:4]), mask], dim=1)
            out = model.temporal.whole_clip(self.context, frames, mask, self.frame_conditions)
            return out[:, :, -new:].flatten(1, 2)

        if model.order == "video":
            orders = self._orders(batch).repeat_interleave(new, dim=0)
        else:
            orders = self._orders(batch * new)
        tokens = self._fill(orders, indicators)
        return model.to_frames(tokens).unflatten(0, (batch, new))

    @property
    def _dtype(self) -> torch.dtype:
        """Type of random numbers."""
        return self.context.dtype if self.options.as_published else torch.float32

    def _orders(self, num: int) -> Tensor:
        return self.model.orders(num, self.context.device, self.request.generator, self._dtype)

    def _fill(self, orders: Int[Tensor, "n l"], indicators: Indicators) -> Tensor:
        """Sample the tokens (N, L[, p·p·C]) of N frames, set by set in the given orders."""
        model, options = self.model, self.options
        tokens = model.empty_tokens(len(orders), orders.device)
        sizes = set_sizes(model.num_positions, options.num_sets or model.num_sets)
        graphs = self._graphs()
        for i, part in enumerate(set_slices(sizes)):
            given = indicators(tokens, orders[:, : part.start]), tokens, orders
            of_set = partial(self._hidden, part=part)
            key = (part.start, part.stop)
            hidden = of_set(*given) if graphs is None else graphs(key, of_set, *given)
            new = orders[:, part]
            tokens = write_tokens(tokens, new, self._tokens(hidden, new, (i + 1) / len(sizes)))
            self.request.on_step()
        return tokens

    def _graphs(self) -> CudaGraphs | None:
        """The graphs of the spatial layers; None where kernels are launched one by one."""
        captures = self.context.is_cuda and may_capture() and not self.model.training
        return graphs_of(self.model.spatial) if captures else None

    def _hidden(
        self,
        indicator: Float[Tensor, "p n i d"],
        tokens: Tensor,
        orders: Int[Tensor, "n l"],
        part: slice,
    ) -> Float[Tensor, "p n m d"]:
        """Hidden states of the set at the places `part` of the orders. All earlier tokens are known."""
        known = orders[:, : part.start]
        hidden: Tensor = self.model.spatial(
            indicator, read_tokens(tokens, known), known, orders[:, part]
        )
        return hidden

    def _tokens(self, hidden: Float[Tensor, "p n m d"], ids: Tensor, progress: float) -> Tensor:
        """Sample the tokens of a set, at raster indices `ids`. `progress` is the share of sets finished with it."""
        options, head = self.options, self.model.head
        if options.ramp_start is not None:  # a linear ramp
            rise = options.guidance - options.ramp_start
            guidance = options.ramp_start + rise * progress
            options = options.replace(guidance=guidance, guidance_min=None)
        null = hidden[1] if len(hidden) > 1 else None
        if not isinstance(head, DiffusionHead):
            return head.sample(
                hidden[0], options=options, null_hidden=null, generator=self.request.generator
            )
        whole = WholeFrame(ids, lambda: self._whole_noise(len(ids)), options.as_published)
        return head.sample(
            hidden[0],
            options=options,
            null_hidden=null,
            image_hidden=hidden[2] if len(hidden) > 2 else None,
            image_guidance=options.image_guidance,
            generator=self.request.generator,
            frame=whole if options.whole_noise or options.as_published else None,
        )

    def _whole_noise(self, num: int) -> Tensor:
        """Noise for all tokens (N, L, p·p·C) of frames, drawn channel by channel as the released code does."""
        spec, grid = self.model.spec, self.model.grid
        shape = (num, spec.size, grid.h, grid.w)
        device, generator = self.context.device, self.request.generator
        noise = torch.randn(shape, generator=generator, device=device, dtype=self._dtype)
        return to_patches(noise.movedim(1, -1), spec, self.model.patch)


class _Window:
    """Indicators of successive frames, from a cache or by a forward pass over all frames of the window.

    Without `overlap` the window is the whole clip, and its times are scaled to the trained range (released code). With
    `overlap`, a clip longer than trained has a window of the trained length. When the window is full, a new one starts:
    context and BOV, then the last `overlap` frames as given frames; times count from there. The paper only says "by
    shifting both the text and BOV embeddings".
    """

    def __init__(self, sampler: ClipSampler) -> None:
        trained, options = sampler.model.grid.t, sampler.options
        self.temporal = sampler.model.temporal
        self.context = sampler.context
        self.frame_conditions = sampler.frame_conditions
        self.use_cache = options.use_cache
        self.length = sampler.num_frames
        self.overlap = 0
        self.start = 0  # first frame of the window
        self.anchor: Tensor | None = None  # output of the window's first block
        self.caches: list[KVCache] | None = None
        if options.overlap is not None and sampler.num_frames > trained:
            if options.overlap >= trained:
                raise UserError(
                    f"An overlap of {options.overlap} latent frames leaves nothing to generate in a window of "
                    f"{trained}: make it smaller."
                )
            self.length, self.overlap = trained, options.overlap
        self._begin(0)

    def indicator(self, frames: list[Tensor]) -> Float[Tensor, "p b l d"]:
        """Indicator of the frame after `frames`."""
        if len(frames) - self.start >= self.length:
            self._begin(len(frames) - self.overlap)
        past, num = frames[self.start :], len(frames)
        of_frame = self._frame_conditions(num, num + 1)  # (P, B, 1, D)
        if self.anchor is None or self.caches is None:
            # A new window, or no cache: one pass over all frames of the window (which fills the cache).
            given = torch.stack(past, dim=1) if past else None
            of_blocks = self._frame_conditions(self.start, num + 1)
            out = self.temporal(self.context, given, self.length, self.caches, of_blocks)
            self.anchor, current = out[:, :, 0], out[:, :, -1]
        else:
            current = self.temporal.step(
                len(self.context), past[-1], len(past), self.length, self.caches, of_frame
            )
        indicator = self.temporal.indicator(self.anchor, current) if past else current
        return add_frame_conditions(indicator[:, :, None], of_frame)[:, :, 0]

    def _frame_conditions(self, start: int, stop: int) -> Tensor | None:
        """Conditions of the clip's frames start..stop-1. (Their index is the clip's; times are the window's.)"""
        return None if self.frame_conditions is None else self.frame_conditions[:, :, start:stop]

    def _begin(self, start: int) -> None:
        self.start, self.anchor = start, None
        if self.use_cache:
            length = self.context.shape[2] + self.length * self.temporal.num_tokens
            self.caches = self.temporal.layers.new_caches(length)


def set_slices(sizes: Sequence[int]) -> list[slice]:
    """Where each set lies in the order of the tokens."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def set_sizes(num_tokens: int, num_sets: int) -> list[int]:
    """Tokens per set by the cosine schedule: few tokens in the first sets. Empty sets are left out."""
    # cos(π i / 2S) of the tokens are still unknown after set i of S.
    left = [round(math.cos(math.pi * i / (2 * num_sets)) * num_tokens) for i in range(num_sets + 1)]
    sizes = [before - after for before, after in pairwise(left)]
    return [size for size in sizes if size > 0]


def same_order(order: Order, num_tokens: int) -> Int[Tensor, " l"] | None:
    """The common order of all frames: raster order or a fixed random permutation. None if the order is drawn."""
    if order == "raster":
        return torch.arange(num_tokens, device="cpu")
    if order == "fixed":
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.randperm(num_tokens, generator=generator, device="cpu")
    return None
