"""Figures 11 and 12 of Next-Block Prediction (arXiv 2502.07737): attention weights when blocks are whole frames.

Shows the attention weights of a next-frame and a next-token model on real clips: text, first and second latent frame.
Blocks of a frame give a staircase mask instead of a triangle (figure 11). A query attends to its whole frame, including
later positions (figure 12). The table gives the share of attention weight per region.

Writes table.md, results.json, figure11.png and figure12.png to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from arvid.benchmarks.nbp import _common as nbp
from arvid.contracts import Clip
from arvid.experiments.paper import table, write_page
from arvid.experiments.variants import Variant, load_variant, scored_clips
from arvid.paradigms.next_block.maps import Maps, attention_maps
from arvid.report.panels import write_figure
from arvid.training.generator_module import GeneratorModule

TASK: nbp.Task = "class and frame"
NUM_CLIPS = 8
DAMPED = 5
"""Divisor of the text weights in the picture, as in the paper."""
BRIGHTEST = 0.995
"""Quantile of the weights that is drawn in white."""
NOTES = (
    "Published: figure 11 is of UCF-101 with blocks of 1x16x16, text weights divided by 5 for display; which layer, "
    "head and clip is not said. Here: mean over heads and clips, of the first, middle and last layer.",
)


def main() -> None:
    """Train, look, draw, write."""
    options = nbp.read_arguments(nbp.parser(__doc__ or "", "runs/nbp-figures11-12", ["ucf101"]))
    rows = nbp.trained(options, TASK, partial(variants, options))
    maps = {row.name: attention_maps(*model_and_clips(row, options)) for row in rows}
    layers = {name: shown_layers(found) for name, found in maps.items()}
    pairs = [(name, layer) for name in maps for layer in layers[name]]
    for file, draw in (("figure11", draw_all), ("figure12", draw_query)):
        draws = [partial(draw, name=name, found=maps[name], layer=layer) for name, layer in pairs]
        write_figure(options.out / file, draws, columns=len(pairs) // len(maps))
    shares = {name: found.shares() for name, found in maps.items()}
    lines = ["## Where the weights of the second frame's queries go", ""]
    lines += table(
        ("", "layer", *next(iter(shares.values()))),
        [
            (name, str(layer + 1), *(f"{part[layer]:.1%}" for part in shares[name].values()))
            for name, layer in pairs
        ],
    )
    title = "Figures 11 and 12 of NBP: attention"
    results = {"scale": options.scale, "shares": shares, "clips": NUM_CLIPS}
    write_page(options.out, title, lines, NOTES, results)


def variants(options: argparse.Namespace) -> list[Variant]:
    """Blocks of a frame, and of one token."""
    token, *_, frame = nbp.published_blocks(*nbp.frame_sides(options))
    size = nbp.ABLATED[options.scale]
    return [
        nbp.variant(nbp.block_name(block), options, TASK, size=size, block=block)
        for block in (frame, token)
    ]


def model_and_clips(
    row: Variant, options: argparse.Namespace
) -> tuple[GeneratorModule, list[Clip]]:
    """A model and the first real clips of its validation, or of the protocol that its scale has."""
    model = load_variant(row, options.out)
    scoring = nbp.scoring(options, [TASK])
    protocol = scoring.protocols[0]
    dataset = scored_clips(model, protocol, scoring.real.get(protocol.name))
    return model, [dataset[i] for i in range(min(NUM_CLIPS, len(dataset)))]


def shown_layers(found: Maps) -> Sequence[int]:
    """The first, middle and last layer."""
    last = len(found.weights) - 1
    return sorted({0, last // 2, last})


def draw_all(axis: Axes, name: str, found: Maps, layer: int) -> None:
    """Figure 11: all queries and keys; red lines between text, begin-of-video tokens, first and second frame."""
    weights = found.weights[layer].numpy().copy()
    weights[:, : found.edges[0]] /= DAMPED
    brightest = max(float(np.quantile(weights[weights > 0], BRIGHTEST)), 1e-9)
    axis.imshow(weights, cmap="gray", vmin=0, vmax=brightest, interpolation="nearest")
    for edge in found.edges[:-1]:
        axis.axhline(edge - 0.5, color="red", lw=0.6)
        axis.axvline(edge - 0.5, color="red", lw=0.6)
    axis.grid(False)
    axis.set(xlabel="key", ylabel="query", title=f"{name}, layer {layer + 1}")


def draw_query(axis: Axes, name: str, found: Maps, layer: int) -> None:
    """Figure 12: weights of one query over its frame. The red cross marks the query, the middle of the second frame."""
    grid = found.grid
    row, column = grid.h // 2, grid.w // 2
    raster = (grid.t - 1) * grid.tokens_per_frame + row * grid.w + column
    axis.imshow(found.row(raster)[layer, -1].numpy(), cmap="viridis", interpolation="nearest")
    axis.plot(column, row, "x", color="red", ms=10, mew=2)
    axis.grid(False)
    axis.set(xticks=[], yticks=[], title=f"{name}, layer {layer + 1}")


if __name__ == "__main__":
    main()
