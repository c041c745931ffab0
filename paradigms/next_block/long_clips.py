"""Sliding windows of the trained length, for clips longer than trained. A window begins with finished latent frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from arvid.contracts import Condition, Request, Tokens, UserError
from arvid.nn.windows import Window, windows

if TYPE_CHECKING:
    from arvid.paradigms.next_block.paradigm import NextBlock


def clip_windows(model: NextBlock, num_frames: int, given: int, overlap: int) -> list[Window]:
    """The windows of a clip. Raises UserError for an overlap that is not a whole number of blocks."""
    if overlap % model.block[0]:
        raise UserError(
            f"An overlap of {overlap} latent frames is not a whole number of blocks of {model.block[0]}."
        )
    return windows(num_frames, given, model.grid.t, overlap)


def stream_windows(model: NextBlock, request: Request, overlap: int) -> Iterator[Tokens]:
    """As `Paradigm.stream`: yields the prefix, then the new latent frames of each window.

    Conditions per frame are cut to the window. All windows draw from the request's generator.
    """
    given = request.prefix_frames
    tokens = request.prefix
    if tokens is not None:
        yield tokens
    for window in clip_windows(model, request.grid.t, given, overlap):
        known = None
        if tokens is not None and window.known:
            known = tokens[:, window.start : window.start + window.known]
        part = dataclasses.replace(
            request,
            condition=_cut(model, request.condition, window),
            grid=request.grid.with_frames(window.num_frames),
            prefix=known,
        )
        new = model.generate(part)[:, window.known :]
        tokens = new if tokens is None else torch.cat([tokens, new], dim=1)
        yield new


def _cut(model: NextBlock, condition: Condition, window: Window) -> Condition:
    """The condition with its values per frame cut to the window."""
    values = {
        name: value[:, window.start : window.stop]
        if name in model.frame_conditions.names
        else value
        for name, value in condition.values.items()
    }
    return dataclasses.replace(condition, values=values)
