"""Sampling of next-scale prediction: frame after frame, scale after scale, all tokens of a scale at once.

B clips, P passes of guidance, K scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import Request, SamplingOptions
from arvid.nn.attention import KVCache
from arvid.nn.windows import windows
from arvid.options import option
from arvid.ranges import FINITE, at_least

if TYPE_CHECKING:
    from arvid.paradigms.next_scale.paradigm import NextScale


@dataclass(frozen=True, kw_only=True)
class NextScaleSampling(SamplingOptions):
    """Sampling options of next-scale prediction."""

    guidance_min: float | None = option(None, FINITE)
    """Guidance of a frame's first scale (1 in VAR); it changes linearly to `guidance` at the last scale. By default it
    is constant."""
    overlap: int | None = option(None, at_least(1))
    """Clips longer than trained: generate them in windows of the trained length that begin with this number of finished
    latent frames. By default half of the trained length."""

    @property
    def guided(self) -> bool:
        return super().guided or self.guidance_min not in (None, 1)


@dataclass
class _Frame:
    """A frame of the window: the inputs of its scales so far."""

    before: Float[Tensor, "b h w d"]
    """The previous frame, embedded."""
    condition: Float[Tensor, "pb 1 d"] | None
    """Its embedded conditions per frame."""
    shown: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class ClipSampler:
    """Generates one batch of clips."""

    model: NextScale
    context: Float[Tensor, "pb s d"]
    """Context tokens of each guidance pass, one after another."""
    frame_conditions: Float[Tensor, "pb t d"] | None
    """Embedded conditions per frame of each guidance pass."""
    options: NextScaleSampling
    request: Request

    def frames(self, given: list[Tensor]) -> Iterator[Tensor]:
        """Yield the frames (B, h, w[, C]) after the given ones, each as soon as it is finished."""
        done, sequence, trained = list(given), _Sequence(self), self.model.grid.t
        overlap = max(trained // 2, 1) if self.options.overlap is None else self.options.overlap
        for window in windows(self.request.grid.t, len(given), trained, overlap):
            sequence.begin(done[window.start :], window.start)
            while len(done) < window.stop:
                done.append(self._frame(sequence))
                yield done[-1]

    def _frame(self, sequence: _Sequence) -> Tensor:
        scales, canvas = self.model.scales, None
        frame = sequence.next_frame()
        for k, (rows, columns) in enumerate(scales.sides):
            if canvas is not None:
                frame.shown.append(scales.shown(canvas, k))
            tokens = self._tokens(sequence.hidden(), k).unflatten(1, (rows, columns))
            canvas = scales.add(canvas, tokens)
            self.request.on_step()
        assert canvas is not None
        sequence.finish(canvas)
        return canvas

    def _tokens(self, hidden: Float[Tensor, "pb n d"], k: int) -> Tensor:
        """Draw the tokens (B, N[, C]) of scale k."""
        options, model, batch = self.options, self.model, self.request.batch_size
        if options.guidance_min is not None:
            share = k / max(len(model.scales.sides) - 1, 1)
            guidance = options.guidance_min + share * (options.guidance - options.guidance_min)
            options = options.replace(guidance=guidance, guidance_min=None)
        given, *null = hidden.split(batch)
        tokens = model.head.sample(
            given,
            options=options,
            null_hidden=null[0] if null else None,
            generator=self.request.generator,
        )
        return tokens if model.spread is None else tokens * model.spread.values[k].float()


class _Sequence:
    """The sequence of a window's frames: feeds new scales to the network with a cache, or all scales without one."""

    def __init__(self, sampler: ClipSampler) -> None:
        self.model = sampler.model
        self.context = sampler.context
        self.batch = sampler.request.batch_size
        self.use_cache = sampler.options.use_cache
        self.frame_conditions = sampler.frame_conditions
        self.begin([], 0)

    def begin(self, finished: list[Tensor], start: int) -> None:
        """Begin a new window at frame `start` of the clip, with finished frames (B, h, w[, C])."""
        self.start = start
        self.frames: list[_Frame] = []
        self.last: Tensor | None = None
        # In the cache: number of whole frames, and number of scales of the next frame.
        self.fed = (0, 0)
        self.num_cached = 0  # number of positions in the cache
        self.caches: list[KVCache] | None = None
        if self.use_cache:
            self.caches = self.model.transformer.new_caches(len(self.model.blocks))
        for frame in finished:
            self.next_frame().shown = self.model.scales.split(frame).shown
            self.finish(frame)

    def next_frame(self) -> _Frame:
        """Append the frame that is sampled next."""
        last = None if self.last is None else self.last[:, None]
        i, conditions = self.start + len(self.frames), self.frame_conditions
        condition = None if conditions is None else conditions[:, i : i + 1]
        self.frames.append(_Frame(self.model.before(last, self.batch)[:, -1], condition))
        return self.frames[-1]

    def finish(self, frame: Tensor) -> None:
        """Take the finished frame: it is the previous frame of the next one."""
        self.last = frame

    def hidden(self) -> Float[Tensor, "pb n d"]:
        """Normed hidden states that predict the next scale of the last frame."""
        model, passes = self.model, len(self.context) // self.batch
        start = self.num_cached if self.caches else 0
        fed, known_scales = self.fed if self.caches else (0, 0)
        parts = [] if start else [self.context]
        for i, frame in enumerate(self.frames[fed:]):
            x = model.inputs(frame.shown, frame.before, known_scales if i == 0 else 0)
            x = x.repeat(passes, 1, 1)
            parts.append(x if frame.condition is None else x + frame.condition)
        x = torch.cat(parts, dim=1)
        end = start + x.shape[1]
        # After a cache hit the new positions are one block, which sees everything: no mask is needed.
        mask = model.mask(end).dense() if not start else None
        x = model.transformer(x, mask, self.caches, rotation=model.rotary(start, end))
        num = model.scales.num_positions[len(self.frames[-1].shown)]
        self._remember(end)
        hidden: Tensor = model.norm(x[:, -num:])
        return hidden

    def _remember(self, end: int) -> None:
        self.num_cached, known = end, len(self.frames[-1].shown) + 1
        whole = known == len(self.model.scales.sides)
        self.fed = (len(self.frames), 0) if whole else (len(self.frames) - 1, known)
