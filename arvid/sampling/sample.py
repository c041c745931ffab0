"""Samples clips from a trained generator: text or class to video, and continuation of given frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from arvid.contracts import (
    Clip,
    Condition,
    Paradigm,
    Request,
    SamplingOptions,
    TokenGrid,
    Tokens,
    UserError,
    VideoTokenizer,
)
from arvid.data.collate import normalise, to_uint8
from arvid.nn.conditioner import Conditioner
from arvid.nn.conditions import all_conditions, condition, of_clips
from arvid.nn.finite import require_finite_weights
from arvid.nn.heads.categorical import CategoricalHead
from arvid.progress import Bar


class Generator(Protocol):
    """A tokenizer with its conditioner and paradigm, such as `arvid.training.generator_module.GeneratorModule`."""

    tokenizer: VideoTokenizer
    conditioner: Conditioner
    paradigm: Paradigm
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the training clips."""
    sampling: SamplingOptions
    """Default sampling options."""
    value_names: dict[str, list[str]]
    """Names of the values of conditions."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of the clips. Each sequence has one entry per clip; None means not given."""

    num_clips: int
    captions: Sequence[str] | None = None
    negatives: Sequence[str] | None = None
    """Negative prompts of classifier-free guidance; None: the null condition."""
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of the other conditions by name (see `arvid.nn.conditions`); conditions per frame have shape (T, ...)."""

    @classmethod
    def of_clips(cls, clips: Sequence[Clip]) -> Conditions:
        """The conditions of dataset clips, as in training."""
        return cls(
            num_clips=len(clips),
            captions=[clip.caption for clip in clips],
            values=of_clips(clips),
        )

    def part(self, start: int, stop: int) -> Conditions:
        """The conditions of the clips from `start` to `stop` (exclusive)."""
        return Conditions(
            num_clips=len(range(self.num_clips)[start:stop]),
            captions=self.captions and self.captions[start:stop],
            negatives=self.negatives and self.negatives[start:stop],
            values={name: values[start:stop] for name, values in self.values.items()},
        )

    def encode(self, model: Generator, num_frames: int | None = None) -> Condition:
        """The condition of clips of `num_frames` (by default as trained).

        Values per frame are cut to that length; frames after the last value have unknown values.
        """
        frames = model.clip_shape[0] if num_frames is None else num_frames
        values = {}
        for name in model.conditioner.sizes:
            if name in self.values:
                kind = condition(name)
                array = kind.batch([kind.cut(np.asarray(v), 0, frames) for v in self.values[name]])
                values[name] = torch.from_numpy(array)
        model.conditioner.check(values)
        values = {name: value.to(model.device) for name, value in values.items()}
        encoded: Condition = model.conditioner(
            caption=self.captions, negative=self.negatives, values=values
        )
        return encoded


def requested(
    model: Generator,
    num_clips: int,
    *,
    prompts: Sequence[str] | None,
    negative_prompt: str | None,
    values: Mapping[str, Any],
    num_frames: int | None,
    spelt: Callable[[str], str] = str,
) -> Conditions:
    """The conditions of clips that a user asks for.

    Args:
        model: the model, which must know the conditions.
        num_clips: number of clips.
        prompts: one per clip.
        negative_prompt: of all clips.
        values: condition name -> result of `ConditionType.parse`, for all clips; None: not given.
        num_frames: frames of a clip; by default as trained.
        spelt: how errors name an argument.

    Raises UserError for a condition that the model was trained without, and for wrong values.
    """
    has_text = model.conditioner.text is not None
    _require_known(prompts, has_text, spelt("prompt"))
    _require_known(negative_prompt, has_text, spelt("negative_prompt"))
    found = {}
    for kind in all_conditions():
        given, known = values.get(kind.name), kind.name in model.conditioner.sizes
        _require_known(given, known or kind.ignorable, spelt(kind.name))
        if given is not None and known:
            names = model.value_names.get(kind.name, ())
            value = kind.given(given, names, num_frames or model.clip_shape[0])
            found[kind.name] = [value] * num_clips
    return Conditions(
        num_clips=num_clips,
        captions=prompts,
        negatives=None if negative_prompt is None else [negative_prompt] * num_clips,
        values=found,
    )


def _require_known(given: Any, known: bool, name: str) -> None:
    if given is not None and not known:
        raise UserError(f"{name} was given, but this model was trained without that condition.")


@torch.no_grad()
def sample(
    model: Generator,
    conditions: Conditions,
    *,
    num_frames: int | None = None,
    first_frames: UInt8[np.ndarray, "b k h w 3"] | None = None,
    options: SamplingOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> UInt8[np.ndarray, "b t h w 3"]:
    """Generate one clip per condition. The result is reproducible for a seed and a batch.

    Args:
        model: see `arvid.training.generator_module.load_generator`.
        conditions: captions, and the other conditions of each clip.
        num_frames: frames per clip, 1 + F_T·n; by default the trained length.
        first_frames: frames to continue, also 1 + F_T·n. The result begins with their reconstructions.
        options: sampling options; by default the model's.
        seed: seed of all random numbers.
        progress: show a progress bar over network evaluations.

    Raises UserError for numbers of frames or sizes that tokenizer or model do not support, and if weights, tokens or
    pixels are not finite.
    """
    request = _request(model, conditions, num_frames, first_frames, options, seed)
    with _bar(model, request, progress) as counted:
        tokens = model.paradigm.generate(counted)
    video = model.tokenizer.decode(_for_decoder(model, tokens, request))
    return to_uint8(video, truncate=request.options.truncates_pixels).cpu().numpy()


@torch.no_grad()
def stream(
    model: Generator,
    conditions: Conditions,
    *,
    num_frames: int | None = None,
    first_frames: UInt8[np.ndarray, "b k h w 3"] | None = None,
    options: SamplingOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[UInt8[np.ndarray, "b n h w 3"]]:
    """The clips of `sample`, yielded in pieces as frames are finished.

    Joined along time, the pieces equal the clips of `sample` up to rounding.
    """
    request = _request(model, conditions, num_frames, first_frames, options, seed)
    with _bar(model, request, progress) as counted:
        pieces = model.paradigm.stream(counted)
        finished = (_for_decoder(model, piece, request) for piece in pieces)
        for video in model.tokenizer.decode_stream(finished):
            yield to_uint8(video, truncate=request.options.truncates_pixels).cpu().numpy()


def _for_decoder(model: Generator, tokens: Tokens, request: Request) -> Tokens:
    """Continuous tokens in float32, as the decoder's weights are; ids unchanged.

    Raises UserError, with the options, if tokens or the logits they were drawn from are not finite.
    """
    heads = [m for m in model.paradigm.modules() if isinstance(m, CategoricalHead)]
    faults = [head.take_fault() for head in heads]
    if any(faults) or (tokens.is_floating_point() and not tokens.isfinite().all()):
        dtype = str(next(model.paradigm.parameters()).dtype).removeprefix("torch.")
        given = "".join(f", {k} {v}" for k, v in request.options.changed().items())
        raise UserError(
            f"The sampled tokens are not finite, although all weights are ({dtype}{given}). Sample with less "
            "guidance, with the default options, or in float32."
        )
    return tokens.float() if tokens.is_floating_point() else tokens


def _request(
    model: Generator,
    conditions: Conditions,
    num_frames: int | None,
    first_frames: UInt8[np.ndarray, "b k h w 3"] | None,
    options: SamplingOptions | None,
    seed: int,
) -> Request:
    """The request to the paradigm. Raises UserError if the model cannot fulfil it."""
    grid = clip_grid(model, num_frames)
    require_finite_weights(cast(nn.Module, model), "This model")
    return Request(
        conditions.encode(model, num_frames),
        grid,
        batch_size=conditions.num_clips,
        prefix=None if first_frames is None else _encode_prefix(model, first_frames, grid),
        options=options or model.sampling,
        generator=torch.Generator(model.device).manual_seed(seed),
    )


@contextmanager
def _bar(model: Generator, request: Request, shown: bool) -> Iterator[Request]:
    """The request with a progress bar that counts evaluations of the main network."""
    evaluations = model.paradigm.num_evaluations(
        request.grid, prefix_frames=request.prefix_frames, options=request.options
    )
    name, total = next(iter(evaluations.items()))
    with Bar(work=name, total=total, unit="evaluation", hidden=not shown) as bar:
        yield dataclasses.replace(request, on_step=lambda: _advance(bar))


def _advance(bar: Bar) -> None:
    bar.update()


def clip_grid(model: Generator, num_frames: int | None = None) -> TokenGrid:
    """Token grid of a clip of `num_frames` (by default as trained) at the trained size.

    Raises UserError for a number of frames that the tokenizer cannot decode.
    """
    trained_frames, height, width = model.clip_shape
    frames = trained_frames if num_frames is None else num_frames
    grid = model.tokenizer.spec.grid(frames, height, width)
    model.tokenizer.check_grid(grid)
    return grid


def _encode_prefix(
    model: Generator, frames: UInt8[np.ndarray, "b k h w 3"], grid: TokenGrid
) -> torch.Tensor:
    if not model.paradigm.takes_prefix:
        raise UserError(
            f"{type(model.paradigm).__name__} cannot continue given frames: leave out the first frames."
        )
    if frames.shape[2:4] != model.clip_shape[1:]:
        raise UserError(
            f"The first frames are {frames.shape[3]}x{frames.shape[2]} pixels; this model makes "
            f"{model.clip_shape[2]}x{model.clip_shape[1]}."
        )
    video = torch.stack([normalise(clip) for clip in frames]).to(model.device)
    tokens = model.tokenizer.encode(video)
    if tokens.shape[1] >= grid.t:
        raise UserError(
            f"{frames.shape[1]} first frames leave nothing to generate in a clip of "
            f"{model.tokenizer.spec.num_frames(grid)}. Ask for more --frames."
        )
    return tokens
