"""Sliding windows of the trained length, for clips longer than trained. A window begins with finished latent frames."""

from __future__ import annotations

from dataclasses import dataclass

from arvid.contracts import UserError


@dataclass(frozen=True)
class Window:
    """Latent frames `start` to `stop` - 1 of a clip. The first `known` of them are finished when the window begins."""

    start: int
    known: int
    stop: int

    @property
    def num_frames(self) -> int:
        """Number of latent frames, known ones included."""
        return self.stop - self.start


def windows(num_frames: int, given: int, length: int, overlap: int) -> list[Window]:
    """The windows in which a clip is generated, in order.

    A clip of up to `length` latent frames is one window. A longer clip has several windows of `length` frames; the last
    may be shorter. Each window after the first begins with the last `overlap` finished frames.

    Args:
        num_frames: latent frames of the clip.
        given: number of given (prefix) frames; fewer than `num_frames`.
        length: latent frames of a window.
        overlap: finished frames at the start of a window.

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
