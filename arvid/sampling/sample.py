"""Clips from a trained generator: text or class to video, and the continuation of given frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from arvid.contracts import Clip, Condition, SamplingOptions, TokenGrid, UserError
from arvid.data.collate import normalise, to_uint8
from arvid.training.generator_module import GeneratorModule


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What each clip is generated from; every list has one entry per clip or is None."""

    num_clips: int
    captions: Sequence[str] | None = None
    labels: Sequence[int] | None = None
    motion: Sequence[float] | None = None

    @classmethod
    def of_clips(cls, clips: Sequence[Clip]) -> Conditions:
        """The conditions of given clips, as training saw them."""
        return cls(
            num_clips=len(clips),
            captions=[clip.caption for clip in clips],
            labels=[-1 if clip.label is None else clip.label for clip in clips],
            motion=[math.nan if clip.motion is None else clip.motion for clip in clips],
        )

    def encode(self, model: GeneratorModule) -> Condition:
        device = model.device
        return model.conditioner(
            caption=self.captions,
            label=None if self.labels is None else torch.tensor(self.labels, device=device),
            motion=None if self.motion is None else torch.tensor(self.motion, device=device),
        )


@torch.no_grad()
def sample(
    model: GeneratorModule,
    conditions: Conditions,
    *,
    num_frames: int | None = None,
    first_frames: UInt8[np.ndarray, "b k h w 3"] | None = None,
    options: SamplingOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> UInt8[np.ndarray, "b t h w 3"]:
    """Generate one clip per condition, reproducibly for a seed and batch.

    Args:
        model: see `arvid.training.generator_module.load_generator`.
        conditions: captions, labels, motion scores.
        num_frames: frames per clip, 1 + F_T·n; the trained length by default.
        first_frames: given frames (also 1 + F_T·n) to go on from. They come back as the tokenizer
            reconstructs them.
        options: the model's own by default.
        seed: of the noise.
        progress: show a bar over the network evaluations.

    Raises UserError for frame counts or sizes that the tokenizer or the model cannot do.
    """
    options = options or model.sampling
    grid = clip_grid(model, num_frames)
    prefix = None if first_frames is None else _encode_prefix(model, first_frames, grid)
    evaluations = model.paradigm.num_evaluations(
        grid, prefix_frames=0 if prefix is None else prefix.shape[1], options=options
    )
    name, total = next(iter(evaluations.items()))
    with tqdm(total=total, desc=name, disable=not progress, leave=False) as bar:
        tokens = model.paradigm.generate(
            conditions.encode(model),
            grid,
            batch_size=conditions.num_clips,
            prefix=prefix,
            options=options,
            generator=torch.Generator(model.device).manual_seed(seed),
            on_step=lambda: _advance(bar),
        )
    return to_uint8(model.tokenizer.decode(tokens)).cpu().numpy()


def _advance(bar: tqdm[Any]) -> None:
    bar.update()


def clip_grid(model: GeneratorModule, num_frames: int | None = None) -> TokenGrid:
    """Token grid of a clip of `num_frames` (the trained number by default) at the trained size."""
    trained_frames, height, width = model.clip_shape
    frames = trained_frames if num_frames is None else num_frames
    return model.tokenizer.spec.grid(frames, height, width)


def _encode_prefix(
    model: GeneratorModule, frames: UInt8[np.ndarray, "b k h w 3"], grid: TokenGrid
) -> torch.Tensor:
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
