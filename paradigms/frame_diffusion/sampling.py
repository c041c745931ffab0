"""Sampling of frame diffusion: all frames together, one after another, or staggered.

One loop does all three. In each evaluation the active frames take a denoising step, and the finished frames are
history. With causal attention, frames that have not begun are not computed, and finished frames are cached.
B clips, P passes of guidance, k frames of L tokens, S denoising steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arvid.contracts import Condition, Request, SamplingOptions, Tokens, UserError
from arvid.lasting import constant
from arvid.nn.denoiser import CLEAN_TIME
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.heads.diffusion_process import DiffusionSampling, guide
from arvid.nn.noise import GaussianNoise, TokenNoise, gumbel_like
from arvid.nn.noise_levels import schedule
from arvid.nn.windows import Window, windows
from arvid.options import option
from arvid.ranges import FINITE, SHARE, at_least

if TYPE_CHECKING:
    from arvid.paradigms.frame_diffusion.paradigm import FrameDiffusion


@dataclass(frozen=True, kw_only=True)
class FrameDiffusionSampling(SamplingOptions):
    """Frame diffusion's sampling options."""

    stagger: float | None = option(None, at_least(0))
    """Denoising steps between the start of a latent frame and the start of the next one. 0 denoises all frames
    together. The number of steps (or more) denoises one frame after another. By default that of the model."""
    overlap: int | None = option(None, at_least(1))
    """Clips longer than trained: generate them in windows of the trained length that begin with this number of finished
    latent frames. By default half of the trained length."""
    history_guidance: float = option(1.0, FINITE)
    """Scale w of history guidance: without + w · (with - without). "Without" is the prediction with pure noise instead
    of the finished frames. 1 switches it off."""
    context_noise: float = option(0.0, SHARE)
    """Noise level, 0 to 1, of the finished frames in the network's input."""
    discrete_steps: int = option(16, at_least(1))
    """Discrete tokens: denoising steps of a frame."""
    choice_temperature: float = option(4.5, at_least(0))
    """Discrete tokens with mask noise: scale of the Gumbel noise on the scores that decide which tokens stay. It falls
    to 0 at a frame's last step."""


class ClipSampler:
    """Generates one batch of clips, window by window.

    The passes of guidance are, in order: with the condition; without it (classifier-free guidance); with the condition
    but without history (history guidance). The last two are optional.
    """

    def __init__(
        self, model: FrameDiffusion, options: FrameDiffusionSampling, request: Request
    ) -> None:
        self.model, self.options, self.request = model, options, request
        self.guided = options.guided and not model.context.spec.is_empty
        self.by_history = options.history_guidance != 1
        condition, batch, num_frames = request.condition, request.batch_size, request.grid.t
        context = model.context(condition, batch)
        of_frames = model.frame_conditions(condition, batch, num_frames)
        passes = [(context, of_frames)]
        if self.guided:
            null = model.context.negative(condition, batch)
            passes.append((null, model.frame_conditions(Condition(), batch, num_frames)))
        if self.by_history:
            passes.append((context, of_frames))
        self.context = torch.stack([context for context, _ in passes])  # (P, B, S, D)
        self.frame_conditions: Tensor | None = None  # (P, B, T, D)
        if of_frames is not None:
            self.frame_conditions = torch.stack([of_frames for _, of_frames in passes])

    def pieces(self) -> Iterator[Tokens]:
        """Yield the latent frames (B, n, h, w[, C]) after the given ones, as soon as they are finished."""
        request = self.request
        finished = [] if request.prefix is None else [request.prefix]
        for window in clip_windows(self.model, request.grid.t, request.prefix_frames, self.options):
            history = torch.cat(finished, dim=1)[:, window.start :] if finished else None
            for piece in WindowSampler(self, window, history).pieces():
                finished.append(piece)
                yield piece

    @property
    def num_passes(self) -> int:
        """Number of passes of guidance, P."""
        return len(self.context)

    def combined(
        self, predictions: Float[Tensor, "p b n e"], times: Float[Tensor, " n"]
    ) -> Float[Tensor, "b n e"]:
        """The guided prediction from those of all passes. `times` are the times of the tokens."""
        given = predictions[0]
        out = given
        if self.guided and isinstance(self.options, DiffusionSampling):
            late = times < self.options.guidance_trunc
            out = torch.where(late[:, None], given, guide(predictions[:2], self.options))
        elif self.guided:
            out = predictions[1] + self.options.guidance * (given - predictions[1])
        if self.by_history:
            out = out + (self.options.history_guidance - 1) * (given - predictions[-1])
        return out


class WindowSampler:
    """Generates the frames of a window after its finished ones.

    Args:
        sampler: the clips' sampler.
        window: the frames.
        history: (B, k, h, w[, C]) the finished frames of the window.
    """

    def __init__(self, sampler: ClipSampler, window: Window, history: Tokens | None) -> None:
        self.sampler, self.window = sampler, window
        self.model, self.process = sampler.model, sampler.model.process
        model, request = self.model, sampler.request
        device = sampler.context.device
        shape = (request.batch_size, window.num_frames, model.grid.h, model.grid.w)
        self.noise = self.process.draw(shape, device, request.generator)
        self.tokens = self.process.corrupt(
            model.empty_tokens(shape, device), self.noise, torch.ones(shape[:2], device=device)
        )
        if history is not None:
            self.tokens[:, : window.known] = history
        self.num_steps = num_steps(sampler.options)
        self.levels = model.sampling_levels(sampler.options)  # S + 1 numbers
        self.cached = 0  # frames in the caches
        self.fed = False  # the context is in the caches
        self.caches = None
        if sampler.options.use_cache and model.causal and not model.replaces_history:
            self.caches = model.network.new_caches(window.num_frames)

    def pieces(self) -> Iterator[Tokens]:
        """Yield frames as soon as they are finished."""
        rows = window_schedule(self.model, self.window, self.sampler.options)
        for now, then in pairwise(rows):
            first = now.count(0)
            last = len(now)
            if self.model.causal:
                last = sum(steps_left < self.num_steps for steps_left in then)
            self._step(now, then, first, last)
            self.sampler.request.on_step()
            finished = then.count(0)
            if finished > first:
                yield self.tokens[:, first:finished].clone()

    def _step(self, now: list[int], then: list[int], first: int, last: int) -> None:
        """Denoise the frames first..last-1 from the levels of `now` to those of `then` (remaining steps)."""
        device = self.tokens.device
        level, next_level = (
            constant(tuple(self.levels[i] for i in row[first:last]), device, torch.float32)
            for row in (now, then)
        )
        hidden = self._hidden(first, last, level)  # (P, B, n, L, D)
        times = (1000 * level).repeat_interleave(hidden.shape[3])
        noisy, shape = self.tokens[:, first:last], hidden.shape[2:4]
        if isinstance(self.process, GaussianNoise):
            predicted = self.sampler.combined(self.model.head(hidden).flatten(2, 3).float(), times)
            predicted = self.model.to_frames(predicted.unflatten(1, shape))
            stepped = self.process.step(noisy, predicted, level, next_level)
        else:
            joint = self.sampler.combined(hidden.flatten(2, 3).float(), times)
            left = constant(tuple(then[first:last]), device, torch.long) / self.num_steps
            stepped = self._step_of_ids(self.process, noisy, joint, level, next_level, left)
        self.tokens[:, first:last] = stepped

    def _step_of_ids(
        self,
        process: TokenNoise,
        noisy: Tensor,
        hidden: Float[Tensor, "b m d"],
        level: Tensor,
        next_level: Tensor,
        left: Float[Tensor, " n"],
    ) -> Tensor:
        """Ids sampled from the guided hidden states. (Logits are linear in them, so this equals guided logits.)"""
        options, generator, head = (
            self.sampler.options,
            self.sampler.request.generator,
            self.model.head,
        )
        assert isinstance(head, CategoricalHead)
        hidden = hidden.to(head.logits.weight.dtype)
        drawn, confidence = head.sample_with_confidence(
            hidden, options=options, generator=generator
        )
        drawn, score = drawn.view(noisy.shape), confidence.view(noisy.shape)
        if process.has_mask and options.choice_temperature:
            scale = options.choice_temperature * left[:, None, None]
            score = score + scale * gumbel_like(score, generator)
        return process.step(noisy, drawn, score, level, next_level, generator)

    def _hidden(
        self, first: int, last: int, level: Float[Tensor, " n"]
    ) -> Float[Tensor, "p b n l d"]:
        """Hidden states of the active frames first..last-1, for every guidance pass. Earlier frames are history."""
        start = self.cached
        frames, times = self._inputs(start, first, last, level)
        context = self.sampler.context
        hidden = self.model.network(
            context.flatten(0, 1),
            frames.flatten(0, 1),
            times.flatten(0, 1),
            torch.arange(start, last, device=level.device),
            mask=self._mask(start, last),
            caches=self.caches,
            fed=self.fed,
            frame_conditions=self._frame_conditions(start, last),
        )
        if self.caches:
            self.fed, self.cached = True, first
            for cache in self.caches:  # keep finished frames only: active frames are fed again
                cache.length = self.model.network.length(first)
        return hidden[:, first - start :].unflatten(0, context.shape[:2])

    def _frame_conditions(self, start: int, last: int) -> Float[Tensor, "pb k d"] | None:
        """Embedded conditions of the window's frames start..last-1, for every guidance pass."""
        given, offset = self.sampler.frame_conditions, self.window.start
        return None if given is None else given[:, :, offset + start : offset + last].flatten(0, 1)

    def _inputs(
        self, start: int, first: int, last: int, level: Float[Tensor, " n"]
    ) -> tuple[Tensor, Float[Tensor, "p b k"]]:
        """Frames start..last-1 (P, B, k, h, w[, C]) and their times, with the history that each guidance pass sees."""
        batch, num = len(self.tokens), self.sampler.num_passes
        own = self.tokens[:, first:last]
        history, noise = self.tokens[:, start:first], self.noise[:, start:first]
        shown = [self._history_level(level[0])] * num  # of each pass
        if self.sampler.by_history:
            one = torch.ones_like(level[0])
            shown[-1] = one, 1000 * one
        frames, times = [], []
        for history_level, time in shown:
            levels = history_level.expand(batch, first - start)
            frames.append(torch.cat([self.process.corrupt(history, noise, levels), own], dim=1))
            told = torch.cat([time.expand(first - start), 1000 * level])
            times.append(told.expand(batch, -1))
        return torch.stack(frames), torch.stack(times)

    def _history_level(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Noise level and time of finished frames. `level` is the level of the first active frame."""
        if self.model.replaces_history:
            return level, 1000 * level
        shown = level.new_full((), self.sampler.options.context_noise)
        clean = self.model.sees_clean and not self.sampler.options.context_noise
        return shown, torch.full_like(shown, CLEAN_TIME) if clean else 1000 * shown

    def _mask(self, start: int, last: int) -> Bool[Tensor, "n m"] | None:
        """Attention mask (new tokens, all tokens so far); None if every new token sees all."""
        if not self.model.causal:
            return None
        network = self.model.network
        first_block = start + 1 if self.fed else int(not network.num_context)
        if first_block == last:  # one block goes in, which sees everything
            return None
        blocks = network.block_index(torch.arange(last, device=self.tokens.device))
        going_in = blocks[network.length(start) if self.fed else 0 :]
        return going_in[:, None] >= blocks


def num_steps(options: SamplingOptions) -> int:
    """Denoising steps of a frame."""
    if isinstance(options, DiffusionSampling):
        return options.diffusion_steps
    assert isinstance(options, FrameDiffusionSampling)
    return options.discrete_steps


def clip_windows(
    model: FrameDiffusion, num_frames: int, given: int, options: FrameDiffusionSampling
) -> list[Window]:
    """The windows of a clip, in order."""
    length = model.grid.t
    return windows(num_frames, given, length, options.overlap or max(length // 2, 1))


def window_schedule(
    model: FrameDiffusion, window: Window, options: FrameDiffusionSampling
) -> list[list[int]]:
    """Remaining steps of each frame of a window: a row before the first evaluation, and one after each."""
    stagger = model.stagger if options.stagger is None else options.stagger
    return schedule(window.num_frames, window.known, num_steps(options), stagger)


def require_history_guidance(model: FrameDiffusion) -> None:
    """Raise UserError if a model cannot predict without history: it never saw frames of unequal noise in training."""
    if model.history == "clean copy" or model.levels == "common":
        raise UserError(
            "Guidance by history shows finished frames as pure noise, which this model never saw in training: leave "
            "history_guidance at 1, or train with independent levels and noisy history."
        )
