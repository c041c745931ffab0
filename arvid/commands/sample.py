"""Generate clips from a prompt, a class label, first frames, or several of them.

Writes an mp4 for each clip (a png for a single frame) and a contact sheet of all clips. Under torchrun or srun the
processes share the batches; --batch-size sets their size.

examples:
  arvid sample --checkpoint runs/nova --prompt "a small red square moves left" --count 4 --out samples
  arvid sample --checkpoint nova-osp480.ckpt --first-frames cat.jpg --prompt "a cat turns its head" --fps 12
  arvid sample --checkpoint runs/nova --first-frames clip.mp4 --num-first-frames 17 --frames 65 --overlap 3
  torchrun --nproc-per-node 8 -m -- arvid sample --checkpoint runs/nova --label 3 --count 512 --batch-size 32
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arvid.commands._flags import (
    add_dtype_argument,
    add_trust_argument,
    add_wait_argument,
    chosen_dtype,
)
from arvid.commands._sampling import CommandParser, add_sampling_arguments, sampling_options
from arvid.nn.conditions import all_conditions
from arvid.processes import gather, rank_and_count, sharing_processes
from arvid.ranges import FILE_FPS, at_least

if TYPE_CHECKING:
    import numpy as np

    from arvid.contracts import SamplingOptions
    from arvid.sampling.sample import Conditions
    from arvid.training.generator_module import GeneratorModule


def add_arguments(parser: CommandParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder or file")
    parser.add_argument("--prompt", help="caption of the clip")
    parser.add_argument(
        "--negative-prompt",
        help="negative prompt of classifier-free guidance, in place of the null condition",
    )
    for condition in all_conditions():
        condition.add_argument(parser)
    parser.add_argument(
        "--first-frames", type=Path, metavar="VIDEO", help="video or image to continue"
    )
    parser.add_argument(
        "--num-first-frames",
        type=at_least(1).integer,
        default=1,
        help="number of its frames to give to the model",
    )
    parser.add_argument(
        "--frames", type=at_least(1).integer, help="frames per clip (default: as trained)"
    )
    parser.add_argument("--count", type=at_least(1).integer, default=4, help="number of clips")
    parser.add_argument(
        "--batch-size",
        type=at_least(1).integer,
        metavar="N",
        help="clips that are generated together (default: all). Clips depend on this size, but not on the number of "
        "processes",
    )
    parser.add_argument("--seed", type=at_least(0).integer, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    add_trust_argument(parser)
    add_dtype_argument(parser)
    add_wait_argument(parser)
    add_sampling_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with sharing_processes(options.wait_minutes):
        _sample(options)
    return 0


def _sample(options: argparse.Namespace) -> None:
    from arvid.sampling.sample import clip_grid
    from arvid.training.generator_module import load_generator

    model = load_generator(options.checkpoint, dtype=chosen_dtype(options.dtype))
    conditions = _conditions(options, model)
    first = _first_frames(options, model) if options.first_frames else None
    sampling = sampling_options(options, model.sampling)
    prefix_frames = 0 if first is None else model.tokenizer.spec.grid(*first.shape[1:4]).t
    grid = clip_grid(model, options.frames)
    evaluations = model.paradigm.num_evaluations(
        grid, prefix_frames=prefix_frames, options=sampling
    )
    if rank_and_count()[0] == 0:
        counts = ", ".join(f"{num} {name}" for name, num in evaluations.items())
        clips = "1 clip" if options.count == 1 else f"{options.count} clips"
        frames = model.tokenizer.spec.num_frames(grid)
        print(f"{clips} of {frames} frames, network evaluations per clip:\n  {counts}")
    _write_sheet(gather(_sample_batches(options, model, conditions, first, sampling)), options)


def _sample_batches(
    options: argparse.Namespace,
    model: GeneratorModule,
    conditions: Conditions,
    first: np.ndarray | None,
    sampling: SamplingOptions,
) -> dict[int, np.ndarray]:
    """Generate and write this process's batches; returns them by batch index, on which alone their noise depends."""
    from arvid.sampling.contact_sheet import write_clips
    from arvid.sampling.sample import sample

    size = options.batch_size or options.count
    starts = range(0, options.count, size)
    rank, num_processes = rank_and_count()
    if rank == 0 and len(starts) < num_processes:
        print(f"{len(starts)} of {num_processes} processes make clips: see --batch-size.")
    made = {}
    for i in range(rank, len(starts), num_processes):
        clips = slice(starts[i], starts[i] + size)
        made[i] = sample(
            model,
            conditions.part(clips.start, clips.stop),
            num_frames=options.frames,
            first_frames=None if first is None else first[clips],
            options=sampling,
            seed=options.seed + i,
        )
        write_clips(options.out, made[i], options.fps or FILE_FPS, start=clips.start)
    return made


def _conditions(options: argparse.Namespace, model: GeneratorModule) -> Conditions:
    from arvid.sampling.sample import requested

    return requested(
        model,
        options.count,
        prompts=None if options.prompt is None else [options.prompt] * options.count,
        negative_prompt=options.negative_prompt,
        values={kind.name: getattr(options, kind.name) for kind in all_conditions()},
        num_frames=options.frames,
        spelt=lambda name: f"--{name.replace('_', '-')}",
    )


def _first_frames(options: argparse.Namespace, model: GeneratorModule) -> np.ndarray:
    """First frames of the video at the model's size, repeated for each clip: (count, k, H, W, 3)."""
    import numpy as np

    from arvid.sampling.first_frames import read_first_frames

    frames = read_first_frames(
        options.first_frames, options.num_first_frames, size=model.clip_shape[1:]
    )
    return np.repeat(frames[None], options.count, axis=0)


def _write_sheet(made: list[dict[int, np.ndarray]] | None, options: argparse.Namespace) -> None:
    """Write the contact sheet. Only the first process has `made`, the clips of all processes."""
    import numpy as np

    from arvid.sampling.contact_sheet import write_sheet

    if made is None:
        return
    batches = {i: videos for part in made for i, videos in part.items()}
    videos = np.concatenate([batches[i] for i in sorted(batches)])
    write_sheet(
        options.out / "sheet.png",
        videos[None],
        rows=[f"{i:03d}" for i in range(len(videos))],
        prompts=[options.prompt] if options.prompt else (),
    )
    print(f"Wrote {len(videos)} clips and sheet.png to {options.out}.")
