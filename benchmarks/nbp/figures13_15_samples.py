"""Figures 13 to 15 of Next-Block Prediction (arXiv 2502.07737): clips of the largest model, of sizes, of blocks.

All models continue the same five real frames. Figure 13 shows clips of the largest model, figure 14 the sizes, figure
15 the blocks 1x1x1, a row and a frame. The first row of each clip is the real clip.

--checkpoint NAME=PATH shows existing models: those with the name of a block (1x1x16) in figure 15, the others in
figure 14, and the last of these in figure 13.

Writes figure13.png, figure14.png, figure15.png (and .mp4 of each: flicker shows in motion) and results.json to --out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from arvid.benchmarks.nbp import _common as nbp
from arvid.contracts import Clip
from arvid.data.video import write_video
from arvid.evaluation.protocols import Protocol
from arvid.experiments.paper import write_page
from arvid.experiments.variants import Variant, load_variant, scored_clips
from arvid.sampling.contact_sheet import side_by_side, write_sheet
from arvid.sampling.sample import Conditions, sample

NUM_CLIPS = 4
SHOWN_FPS = 8.0
NOTES = (
    "Published: figures 13 to 15 do not name their data, nor what is given. Here five frames are, as on Kinetics-600; "
    "which frames a picture shows is at equal distances from the first to the last.",
)


def main() -> None:
    """Train, sample, write."""
    options = nbp.read_arguments(nbp.parser(__doc__ or "", "runs/nbp-figures13-15"))
    rows = nbp.trained(options, "frames", partial(variants, options))
    scoring = nbp.scoring(options, ["frames"])
    protocol = scoring.protocols[0]
    first = load_variant(rows[0], options.out)
    dataset = scored_clips(first, protocol, scoring.real.get(protocol.name))
    clips = [dataset[i] for i in protocol.choose(dataset)[0][:NUM_CLIPS]]
    videos = {row.name: continued(row, clips, protocol, options) for row in rows}
    sizes = [name for name in videos if not is_block(name)]
    shown = {
        "figure13": sizes[-1:],
        "figure14": sizes,
        "figure15": [name for name in videos if is_block(name)],
    }
    real = np.stack([clip.video for clip in clips])
    lines = []
    for figure, names in shown.items():
        if names:
            made = np.stack([real, *(videos[name] for name in names)], axis=1)
            write(figure, made, ["real", *names], [clip.caption for clip in clips], options)
            lines.append(f"- {figure}: real clip, {', '.join(names)}")
    results = {"scale": options.scale, "shown": shown, "clips": [clip.name for clip in clips]}
    write_page(options.out, "Figures 13 to 15 of NBP: samples", lines, NOTES, results)


def is_block(name: str) -> bool:
    """Whether a name has the form of a block, e.g. 1x1x16."""
    return re.fullmatch(r"\d+x\d+x\d+", name) is not None


def variants(options: argparse.Namespace) -> list[Variant]:
    """All sizes with blocks of a row, and all blocks at one size. The common variant is trained only once."""
    token, row, *_, frame = nbp.published_blocks(*nbp.frame_sides(options))
    ablated = nbp.ABLATED[options.scale]
    sizes = [
        nbp.variant(size, options, "frames", size=size, block=row)
        for size in nbp.SIZES[options.scale]
    ]
    others = [
        nbp.variant(nbp.block_name(block), options, "frames", size=ablated, block=block)
        for block in (token, frame)
    ]
    same = Variant(name=nbp.block_name(row), checkpoint=options.out / ablated)
    return [*sizes, others[0], same, others[1]]


def continued(
    row: Variant, clips: Sequence[Clip], protocol: Protocol, options: argparse.Namespace
) -> np.ndarray:
    """Clips uint8 (clip, T, H, W, 3) that a model generates from the first frames."""
    given = np.stack([clip.video[: protocol.condition_frames] for clip in clips])
    model = load_variant(row, options.out)
    return sample(
        model,
        Conditions.of_clips(clips),
        num_frames=len(clips[0].video),
        first_frames=given,
        seed=protocol.seed,
        progress=False,
    )


def write(
    figure: str,
    clips: np.ndarray,
    rows: Sequence[str],
    captions: Sequence[str | None],
    options: argparse.Namespace,
) -> None:
    """Write clips (clip, row, T, H, W, 3) as a picture, one line per row and clip, and the first clip as a video."""
    prompts = [caption or f"clip {i + 1}" for i, caption in enumerate(captions)]
    write_sheet(options.out / f"{figure}.png", clips, rows=rows, prompts=prompts)
    write_video(options.out / f"{figure}.mp4", side_by_side(clips[0]), SHOWN_FPS)


if __name__ == "__main__":
    main()
