"""Extrapolation of NOVA (arXiv 2412.14169, section 4.3, appendix C, figures 3 and 4): three times the trained length.

A trained NOVA continues the first frame of real clips, with their condition, beyond its training length. Metrics: PSNR
and LPIPS of each autoregressive step against the real continuation; on sprites the accuracy of shape and colour at each
step; the amount of motion. There are two rows. One uses a moving window of the trained length (`overlap`, by default
half of it), a reading of the paper's "shifting both the text and BOV embeddings". The other is the released code's
method: it compresses the times of the long clip into the trained range. Reference rows: the reconstruction (upper bound
of any model on these tokens) and the first frame repeated.

On sprites the model is trained on windows of long clips, so the real continuation is known. --run names a trained model
instead (with --data: on clips; imported models with --scale paper).

examples:
  arvid bench nova/extrapolation
  arvid bench nova/extrapolation --data videos/ --tokenizer vae3d.ckpt --trainer.max_steps=600
  arvid bench nova/extrapolation --data videos/ --run runs/nova-tam/nova
  arvid bench nova/extrapolation --scale paper --run nova.ckpt --data clips.jsonl

Writes table.md, results.json, index.html, figure3.png (the curves; the red line marks three times the trained length)
and figure4.png (for each clip: the real clip, the reconstruction, and each method, frames from first to last).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arvid.benchmarks.nova import _common as nova
from arvid.contracts import VideoDataset
from arvid.data.sprites import Sprites
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.records import ResultRecord
from arvid.experiments.longer import continued, longer_frames, step_tables
from arvid.experiments.paper import plain_records, write_page
from arvid.experiments.variants import Variant, folders, score, usable
from arvid.ranges import at_least
from arvid.report import tables
from arvid.report.page import write_report
from arvid.report.panels import DASHED, colours, legend_below, write_figure
from arvid.sampling.contact_sheet import write_sheet
from arvid.training.generator_module import GeneratorModule, load_generator

MARKED = 3
"""Trained lengths at the red line of the paper's figure 3."""
SPRITES_LATENTS = 3
"""Trained latent frames of the sprites setting."""
NUM_CLIPS = 32
NOTES = (
    "Published: figure 3 (200 clips of the authors' own, 50 steps of four frames) shows PSNR falling and LPIPS rising "
    "with the step; its values are not given in words or tables. Section 4.3 says that clips of twice the trained "
    "length keep their subject, figure 4 that three times is possible.",
)


def main() -> None:
    """Train, continue, draw, write."""
    options = parse_arguments()
    run = nova.trained_run(options, *sprites_options(options))
    model = load_generator(run)
    protocol, real, notes = scoring(model, options)
    rows = ways(model, run, options)
    records = score(rows, [protocol], options.out, real={protocol.name: real})
    comparison = write_report(folders(records), options.out, title="Extrapolation of NOVA")
    trained = model.paradigm.grid.t
    draw_curves(options.out / "figure3", records, trained, colours(comparison.rows))
    draw_clips(options.out / "figure4.png", records, protocol, real)
    steps = {r.name: {k: dataclasses.asdict(c) for k, c in r.rollout.items()} for r in records}
    results = {
        "scale": options.scale,
        "trained_latent_frames": trained,
        "frames": protocol.clip.num_frames if protocol.clip else None,
        "protocol": protocol.describe(real),
        "steps": steps,
        "records": plain_records(records),
    }
    lines = [*step_tables(records, trained), tables.markdown(comparison)]
    write_page(options.out, "NOVA: extrapolation", lines, [*NOTES, *notes], results)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = nova.parser(__doc__ or "", "runs/nova-extrapolation")
    parser.add_argument("--run", type=Path, help="trained model: run folder or file (train one)")
    parser.add_argument(
        "--times", type=at_least(1).integer, default=MARKED, help="trained lengths of a clip (3)"
    )
    parser.add_argument(
        "--overlap",
        type=at_least(1).integer,
        nargs="*",
        default=[],
        metavar="LATENT_FRAMES",
        help="that a window keeps, one row each (half of the trained length)",
    )
    return nova.read_arguments(parser)


def sprites_options(options: argparse.Namespace) -> list[str]:
    """Options that train on windows of long sprites clips, so that the continuation of a window is known."""
    if options.data:
        return []
    stride, trained = 4, 1 + 4 * (SPRITES_LATENTS - 1)
    long = 1 + stride * (options.times * SPRITES_LATENTS - 1)
    made = []
    for part, num_clips, seed in (("train", 2048, 0), ("val", 256, 1)):
        sprites = {"num_clips": num_clips, "seed": seed, "num_frames": long}
        plain = {"sizes": ["large"], "second": 0, "textured": 0}
        dataset = {"class_path": "arvid.data.sprites.Sprites", "init_args": {**sprites, **plain}}
        windows = {"dataset": dataset, "num_frames": trained, "seed": seed}
        value = {"class_path": "arvid.data.windows.Windows", "init_args": windows}
        made.append(f"--data.{part}={json.dumps(value)}")
    return made


def ways(model: GeneratorModule, run: Path, options: argparse.Namespace) -> list[Variant]:
    """The rows: moving windows, and compressed times."""
    overlaps = options.overlap or [max(model.paradigm.grid.t // 2, 1)]
    moving = [
        Variant(name=f"window, overlap {n}", checkpoint=run, sampling={"overlap": n})
        for n in overlaps
    ]
    return [*moving, Variant(name="times squeezed", checkpoint=run)]


# What is scored


def scoring(
    model: GeneratorModule, options: argparse.Namespace
) -> tuple[Protocol, VideoDataset, list[str]]:
    """The protocol, its real clips, and notes on metrics without weights."""
    if options.scale == "paper":
        protocol = get_protocol("nova-extrapolation", num_clips=options.num_clips)
        return protocol, real_clips(protocol, options.data), []
    real, clip = continued(model, longer_frames(model, options.times))
    sprites = isinstance(real, Sprites)
    protocol = Protocol(
        name="nova-extrapolation-demo",
        summary=f"The first frame of clips continued to {options.times} times the trained length.",
        task="prediction",
        metrics=(
            *("psnr", "ssim", "lpips", "motion"),
            *(("attributes-over-time", "attributes") if sprites else ()),
        ),
        num_clips=min(options.num_clips or NUM_CLIPS, len(real)),
        clip=clip,
        condition_frames=1,
        frames_per_step=model.tokenizer.spec.strides[0],
        batch_size=8,
    )
    protocol, notes = usable(protocol)
    return protocol, real, notes


# What is written


def draw_curves(
    path: Path, records: Sequence[ResultRecord], trained: int, palette: Mapping[str, str]
) -> None:
    """One panel per metric: mean and standard error of each row at each step.

    `trained` is the trained length in latent frames. Step k makes latent frame k + 1.
    """
    metrics = dict.fromkeys(name for r in records for name in r.rollout)
    labels = {
        m.name: f"{m.heading} ({m.unit})" if m.unit else m.heading
        for r in records
        for m in r.metrics
    }
    marks: dict[str, tuple[int, dict[str, Any]]] = {
        "trained length": (trained - 1, {"color": "#66727d", "lw": 1.2, "ls": ":"}),
        f"{MARKED} trained lengths": (MARKED * trained - 1, {"color": "#c0392b", "lw": 1.2}),
    }

    def panel(axis: Axes, metric: str) -> None:
        for record in records:
            if metric not in record.rollout or record.name.startswith("untrained"):
                continue
            curve, colour = record.rollout[metric], palette[record.name]
            mean, steps = np.array(curve.mean), range(1, len(curve.mean) + 1)
            dashes = DASHED if record.row == "reference" else "solid"
            axis.plot(steps, mean, color=colour, ls=dashes, marker="o", ms=3, label=record.name)
            if curve.standard_error is not None:
                error = np.array(curve.standard_error)
                axis.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.18, lw=0)
        for label, (step, style) in marks.items():
            axis.axvline(step, label=label, **style)
        axis.set(xlabel="autoregressive step", title=labels.get(metric, metric))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    def first(axis: Axes) -> None:
        panel(axis, next(iter(metrics)))
        axis.fill_between([], [], [], color="#8a8a8a", alpha=0.3, lw=0, label="± standard error")
        legend_below(axis)

    draws: list[Callable[[Axes], None]] = [first]
    draws += [partial(panel, metric=name) for name in list(metrics)[1:]]
    write_figure(path, draws, columns=min(len(draws), 3), size=(3.9, 3.0))


def draw_clips(
    path: Path, records: Sequence[ResultRecord], protocol: Protocol, real: VideoDataset
) -> None:
    """For each clip: the real clip and those of the rows."""
    shown = [r for r in records if r.row == "trained" or r.name.startswith("reconstruction")]
    clips = nova.generated_clips(shown, 4)
    chosen = protocol.choose(real)[0][: len(clips)]
    truth = np.stack([real[i].video for i in chosen])[:, None]
    write_sheet(
        path,
        np.concatenate([truth, clips], axis=1),
        rows=["real", *(record.name for record in shown)],
        prompts=[clip.prompt for clip in shown[0].clips[: len(clips)]],
        num_frames=12,
    )


if __name__ == "__main__":
    main()
