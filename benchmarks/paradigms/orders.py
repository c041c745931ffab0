"""A picture of each order: which tokens are drawn at once, and from which others.

Left of each row are the latent frames of a small clip. The number in a token is the evaluation of the network that
draws it, and its colour is the same number. On the right a row of the matrix is a token that is predicted, and a column
is a token that it may depend on.

example:
  arvid bench paradigms/orders --out docs/results/orders.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from arvid.contracts import TokenGrid
from arvid.files import atomic_write
from arvid.nn.noise_levels import schedule
from arvid.paradigms.masked.schedule import masked_after
from arvid.paradigms.next_block.layout import Block, Spacing, block_order
from arvid.paradigms.next_scale.scales import default_sides
from arvid.paradigms.nova.sampling import set_sizes

GRID = TokenGrid(3, 4, 4)
SETS = 4
"""Sets of a frame (NOVA) or of a clip (masked)."""
DENOISING_STEPS = 4
FONT = 12
"""Points of all letters; a picture of 720 pixels has 9 inches."""
SEES = ListedColormap(["white", "#b7c9e2", "#2b4c7e"])
NOTHING, NOISY, FINISHED = 0, 1, 2

Steps = NDArray[np.int64]
"""(t, h, w): the evaluation that finishes each token, from 1."""


@dataclass(frozen=True)
class Order:
    """A row of the picture."""

    title: str
    steps: Callable[[], Steps]
    together: Callable[[int, int], bool] = lambda i, j: False
    """Whether a token of latent frame i is denoised together with the tokens of frame j."""


def blocks(block: Block, spacing: Spacing = "adjacent") -> Steps:
    """Next-block prediction; next-token prediction is block 1x1x1."""
    order = block_order(GRID, block, spacing).numpy()
    steps = np.empty(GRID.num_tokens, np.int64)
    steps[order] = 1 + np.arange(GRID.num_tokens) // int(np.prod(block))
    return steps.reshape(GRID.t, GRID.h, GRID.w)


def nova() -> Steps:
    """Random sets of each frame, frame after frame."""
    generator = np.random.default_rng(0)
    sizes = set_sizes(GRID.tokens_per_frame, SETS)
    frames = []
    for frame in range(GRID.t):
        steps = np.repeat(1 + frame * len(sizes) + np.arange(len(sizes)), sizes)
        frames.append(generator.permutation(steps).reshape(GRID.h, GRID.w))
    return np.stack(frames)


def masked() -> Steps:
    """Sets of the whole clip, at random or by confidence."""
    left = [GRID.num_tokens, *masked_after(GRID.num_tokens, GRID.t * SETS)]
    sizes = -np.diff(left)
    steps = np.repeat(1 + np.arange(len(sizes)), sizes)
    return np.random.default_rng(1).permutation(steps).reshape(GRID.t, GRID.h, GRID.w)


def next_scale() -> Steps:
    """The last scale of each frame holds the tokens; coarser scales come before it."""
    num_scales = len(default_sides(GRID))
    last = num_scales * (1 + np.arange(GRID.t))
    return np.broadcast_to(last[:, None, None], (GRID.t, GRID.h, GRID.w))


def denoised(stagger: int) -> Steps:
    """Frame diffusion: each frame begins `stagger` denoising steps after the one before it."""
    left = np.array(schedule(GRID.t, 0, DENOISING_STEPS, stagger))  # (evaluations + 1, t)
    finished = (left > 0).sum(0)
    return np.broadcast_to(finished[:, None, None], (GRID.t, GRID.h, GRID.w))


ORDERS = (
    Order("next token", lambda: blocks((1, 1, 1))),
    Order("next block (1x1x4: a row)", lambda: blocks((1, 1, 4))),
    Order("next block (1x4x4: a frame)", lambda: blocks((1, 4, 4))),
    Order("next block, strided 1x2x2", lambda: blocks((1, 2, 2), "strided")),
    Order("NOVA: sets of a frame", nova),
    Order("masked: sets of the clip", masked),
    Order("next scale", next_scale),
    Order(
        "frame diffusion, frame by frame",
        lambda: denoised(DENOISING_STEPS),
        lambda i, j: i == j,
    ),
    Order("frame diffusion, staggered", lambda: denoised(2), lambda i, j: j <= i),
    Order("frame diffusion, whole clip", lambda: denoised(0), lambda i, j: True),
)


def sees(order: Order) -> Steps:
    """(N, N): what each token (row) is predicted from (column)."""
    steps = order.steps().ravel()
    frame = (np.arange(GRID.num_tokens) // GRID.tokens_per_frame).tolist()
    together = np.array([[order.together(i, j) for j in frame] for i in frame])
    earlier = steps[None, :] < steps[:, None]
    return np.where(earlier & ~together, FINISHED, np.where(together, NOISY, NOTHING))


def draw(path: Path) -> None:
    """Write the picture."""
    figure, axes = plt.subplots(
        len(ORDERS), GRID.t + 1, figsize=(9, 2.1 * len(ORDERS)), layout="constrained"
    )
    for row, order in zip(axes, ORDERS, strict=True):
        steps = order.steps()
        for axis, frame in zip(row, steps, strict=False):
            axis.imshow(frame, cmap="viridis", vmin=1, vmax=steps.max() + 1e-9)
            for (y, x), step in np.ndenumerate(frame):
                colour = "white" if step < 0.6 * steps.max() else "black"
                axis.text(x, y, step, ha="center", va="center", color=colour, fontsize=FONT)
        row[0].set_ylabel(order.title.replace(": ", ":\n").replace(", ", ",\n"), fontsize=FONT)
        row[-1].imshow(sees(order), cmap=SEES, vmin=NOTHING, vmax=FINISHED)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for i in range(GRID.t):
        axes[0, i].set_title(f"latent frame {i}", fontsize=FONT)
    axes[0, -1].set_title(
        "predicted from\n(dark: finished, light:\ndenoised together)", fontsize=FONT
    )
    with atomic_write(path) as file:
        figure.savefig(file, dpi=80, format="png")
    plt.close(figure)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("orders.png"), help="picture to write")
    options = parser.parse_args()
    draw(options.out)
    print(f"Wrote {options.out}.")


if __name__ == "__main__":
    main()
