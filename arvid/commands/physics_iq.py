"""`arvid evaluate physics-iq sample`: sample the videos that Physics-IQ's own code scores.

The command writes 198 videos of exactly five seconds to ROW/physics-iq/videos, under the benchmark's names. Score them
in a copy of google-deepmind/physics-IQ-benchmark (docs/protocols.md).

example:
  arvid evaluate physics-iq sample runs/nova --checkpoint runs/nova --data physics-IQ-benchmark \\
      --descriptions descriptions.csv --given v2v --fps 8
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from arvid.commands._flags import (
    add_dtype_argument,
    add_shard_argument,
    add_trust_argument,
    chosen_dtype,
)
from arvid.commands._sampling import CommandParser, add_sampling_arguments, sampling_options
from arvid.files import sha256_file
from arvid.processes import take_own_gpu
from arvid.ranges import at_least
from arvid.suites.manifest import claim
from arvid.suites.physics_iq import (
    SECONDS,
    Given,
    Scene,
    given_frames,
    load_scenes,
    num_generated_frames,
    require_all,
    scored_part,
)

if TYPE_CHECKING:
    import numpy as np

    from arvid.contracts import TokenSpec
    from arvid.suites.checkpoint_sampler import CheckpointSampler

NAME = "physics-iq"
RATES = (8, 16, 24, 30)
"""Frame rates of the published videos."""
GIVEN_SECONDS = 3
"""Length of a conditioning video, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    steps = parser.add_subparsers(
        dest="step", metavar="STEP", required=True, parser_class=CommandParser
    )
    sample = steps.add_parser("sample", help="generate the videos with a checkpoint")
    sample.add_argument("folder", type=Path, metavar="ROW", help="the row's folder")
    sample.add_argument("--checkpoint", type=Path, required=True, help="run folder or file")
    add_trust_argument(sample)
    sample.add_argument(
        "--data", type=Path, required=True, help="folder with switch-frames and split-videos"
    )
    sample.add_argument("--descriptions", type=Path, required=True, help="descriptions.csv")
    sample.add_argument(
        "--given",
        choices=get_args(Given),
        required=True,
        help="i2v: the model continues the switch frame; v2v: the conditioning video",
    )
    sample.add_argument(
        "--fps",
        type=int,
        choices=RATES,
        required=True,
        help="frame rate of the model's clips and of the files",
    )
    sample.add_argument(
        "--given-frames",
        type=at_least(1).integer,
        metavar="N",
        help="v2v: continue the last N frames (default: the largest N within three seconds that fits the tokenizer)",
    )
    sample.add_argument("--seed", type=at_least(0).integer, default=0)
    add_shard_argument(sample, "video")
    add_dtype_argument(sample)
    add_sampling_arguments(sample)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from arvid.suites.checkpoint_sampler import CheckpointSampler
    from arvid.suites.vbench.sampling import write_missing
    from arvid.training.generator_module import load_generator

    scenes = load_scenes(options.descriptions)
    require_all(scenes)
    take_own_gpu()
    model = load_generator(options.checkpoint, dtype=chosen_dtype(options.dtype))
    num_given = _num_given(options, model.tokenizer.spec)
    sampler = CheckpointSampler(
        model,
        num_frames=num_generated_frames(
            options.given,
            fps=options.fps,
            num_given=num_given,
            stride=model.tokenizer.spec.strides[0],
            causal=model.tokenizer.spec.causal,
        ),
        values={"fps": float(options.fps)} if "fps" in model.conditioner.sizes else None,
        options=sampling_options(options, model.sampling),
    )
    folder: Path = options.folder / NAME
    claim(folder, _describe(options, sampler, num_given))
    index, num_shards = options.shard
    jobs = {
        folder / "videos" / scene.file: partial(_make, scene, sampler, options, num_given)
        for scene in scenes[index::num_shards]
    }
    num_made = write_missing(jobs, options.fps)
    print(f"{num_made} videos of {SECONDS} seconds generated, in {folder / 'videos'}.")
    return 0


def _num_given(options: argparse.Namespace, spec: TokenSpec) -> int:
    """Number of given frames: 1 for i2v; for v2v the option's, or the default (see its help)."""
    if options.given == "i2v":
        return 1
    if options.given_frames is not None:
        return int(options.given_frames)
    longest = GIVEN_SECONDS * options.fps
    # A causal tokenizer encodes the first frame alone, then groups of `strides[0]` frames.
    return longest - (longest - spec.causal) % spec.strides[0]


def _make(
    scene: Scene, sampler: CheckpointSampler, options: argparse.Namespace, num_given: int
) -> np.ndarray:
    """The scored five seconds of a scene (T, H, W, 3)."""
    _, height, width = sampler.model.clip_shape
    first = given_frames(
        scene,
        options.data,
        options.given,
        fps=options.fps,
        num_given=num_given,
        size=(height, width),
    )
    video = sampler([scene.text], scene.seed(options.seed), first_frames=first[None])[0]
    return scored_part(video, options.given, fps=options.fps, num_given=num_given)


def _describe(
    options: argparse.Namespace, sampler: CheckpointSampler, num_given: int
) -> dict[str, Any]:
    """Everything that the videos depend on, as plain data, with the row's setting and factors."""
    return {
        **sampler.describe(options.checkpoint),
        "given": options.given,
        "given_frames": num_given,
        "fps": options.fps,
        "seed": options.seed,
        "descriptions_sha256": sha256_file(options.descriptions),
    }
