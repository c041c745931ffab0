"""Clips longer than trained: a window of the trained length moves along, and begins with finished latent frames."""

from __future__ import annotations

from dataclasses import dataclass

from arvid.contracts import UserError


@dataclass(frozen=True)
class Window:
    """Latent frames `start` to `stop` - 1 of a clip, of which the first `known` are finished when it begins."""

    start: int
    known: int
    stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def windows(num_frames: int, given: int, length: int, overlap: int) -> list[Window]:
    """The windows in which a clip is generated, in order.

    A clip of up to `length` latent frames is one window. The windows of a longer one have `length` frames, the last one
    perhaps fewer, and begin with the last `overlap` finished ones.

    Args:
        num_frames: latent frames of the clip.
        given: first ones that are finished from the start; fewer than all.
        length: of a window.
        overlap: see above.

    Raises UserError if an overlap leaves nothing to draw in a window.
    """
    if num_frames <= length:
        return [Window(0, given, num_frames)]
    if overlap >= length:
        raise UserError(
            f"An overlap of {overlap} latent frames leaves nothing to draw in a window of {length}: make it smaller."
        )
    found: list[Window] = []
    start, done = (0 if given < length else given - overlap), given
    while done < num_frames:
        stop = min(start + length, num_frames)
        found.append(Window(start, done - start, stop))
        start, done = stop - overlap, stop
    return found
