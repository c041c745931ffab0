"""`arvid evaluate vbench`: sample the suite's videos, score them, aggregate the scores.

A row is a folder: a run of arvid, or any folder for other videos. It gets vbench/videos/, vbench/scores/ and, from
`aggregate`, evaluation/vbench.json.

example:
  arvid evaluate vbench sample runs/nova --suite VBench_full_info.json --checkpoint runs/nova
  arvid evaluate vbench score runs/nova --suite VBench_full_info.json --vbench-python ~/vbench/bin/python
  arvid evaluate vbench aggregate runs/nova

  torchrun --nproc-per-node 8 -m -- arvid evaluate vbench sample runs/nova --suite ... --checkpoint runs/nova
  arvid evaluate vbench score results/other --suite VBench_full_info.json --videos ~/other/videos \\
      --dimension subject_consistency --dimension dynamic_degree
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arvid.commands._flags import (
    add_download_argument,
    add_trust_argument,
    add_wait_argument,
    chosen_dtype,
)
from arvid.commands._sampling import CommandParser, add_video_arguments, sampling_options
from arvid.errors import UserError
from arvid.evaluation.records import save as save_record
from arvid.files import sha256_file
from arvid.processes import (
    launched,
    rank_and_count,
    sharing_processes,
    take_own_gpu,
)
from arvid.ranges import at_least
from arvid.suites.manifest import claim
from arvid.suites.vbench import results
from arvid.suites.vbench.aggregate import DIMENSIONS
from arvid.suites.vbench.record import Layout, format_table, make_record
from arvid.suites.vbench.suite import (
    FLICKERING,
    FLICKERING_SAMPLES,
    SAMPLES,
    Prompt,
    Take,
    check_dimensions,
    load_rewritten,
    load_suite,
    present,
    takes,
)
from arvid.terminal import console
from arvid.weights import downloading

if TYPE_CHECKING:
    from arvid.suites.checkpoint_sampler import CheckpointSampler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    steps = parser.add_subparsers(
        dest="step", metavar="STEP", required=True, parser_class=CommandParser
    )
    _add_sample(steps.add_parser("sample", help="generate the suite's videos with a checkpoint"))
    _add_score(steps.add_parser("score", help="measure dimensions of a folder of videos"))
    aggregate = steps.add_parser("aggregate", help="aggregate scores: table and result record")
    aggregate.add_argument("folder", type=Path, metavar="ROW", help="the row's folder")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    layout = Layout(options.folder)
    if options.step == "sample":
        _sample(options, layout)
    elif options.step == "score":
        with sharing_processes(options.wait_minutes):
            _score(options, layout)
    elif launched()[0] == 0:
        _aggregate(options, layout)
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="ROW", help="the row's folder")
    parser.add_argument("--suite", type=Path, required=True, help="VBench_full_info.json")
    parser.add_argument(
        "--dimension",
        action="append",
        metavar="NAME",
        help=f"use only this dimension; may be repeated ({', '.join(DIMENSIONS)})",
    )
    parser.add_argument(
        "--flickering-samples",
        type=at_least(1).integer,
        default=FLICKERING_SAMPLES,
        help=f"videos per prompt for temporal flickering (default: {FLICKERING_SAMPLES}; NOVA: 5)",
    )


def _add_sample(parser: CommandParser) -> None:
    _add_common(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder or file")
    add_trust_argument(parser)
    parser.add_argument(
        "--rewritten",
        type=Path,
        metavar="FILE",
        help="rewritten prompts for the model (file names keep the original ones): NOVA's JSON, a JSON object "
        "{prompt: text}, or .txt with a line for each entry of the suite",
    )
    add_video_arguments(parser)


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--videos", type=Path, help="folder of the videos (default: the row's sampled videos)"
    )
    parser.add_argument(
        "--vbench-python",
        type=Path,
        metavar="PYTHON",
        help="Python interpreter of an environment with the package vbench, which scores the other nine dimensions",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score incomplete videos; not comparable"
    )
    parser.add_argument(
        "--no-static-filter",
        dest="static_filter",
        action="store_false",
        help="for temporal flickering, use the first five videos of each prompt, also moving ones",
    )
    add_download_argument(parser)
    add_wait_argument(parser)
    group = parser.add_argument_group("weights (folders or hub names; files)")
    for name in ("--dino", "--clip-b32", "--clip-l14"):
        group.add_argument(name, metavar="NAME")
    for name in ("--laion-head", "--raft", "--musiq"):
        group.add_argument(name, type=Path, metavar="FILE")


def _sample(options: argparse.Namespace, layout: Layout) -> None:
    from arvid.suites.checkpoint_sampler import CheckpointSampler
    from arvid.suites.vbench.sampling import sample_suite
    from arvid.training.generator_module import load_generator

    suite = load_suite(options.suite)
    names = check_dimensions(options.dimension or DIMENSIONS)
    wanted = takes(suite, names, flickering_samples=options.flickering_samples)
    texts = load_rewritten(options.rewritten, suite) if options.rewritten else None
    take_own_gpu()
    model = load_generator(options.checkpoint, dtype=chosen_dtype(options.dtype))
    sampler = CheckpointSampler(
        model,
        num_frames=options.frames,
        values={} if options.motion is None else {"motion": options.motion},
        options=sampling_options(options, model.sampling),
    )
    claim(layout.benchmark, _describe(options, sampler))
    num_sampled = sample_suite(
        wanted,
        lambda text, seed: sampler([text], seed)[0],
        layout.videos,
        texts=texts,
        fps=options.fps,
        seed=options.seed,
        shard=options.shard,
    )
    index, count = options.shard
    share = f" (shard {index} of {count})" if count > 1 else ""
    print(
        f"{num_sampled} videos generated{share}; the suite has {len(wanted)}, in {layout.videos}."
    )


def _score(options: argparse.Namespace, layout: Layout) -> None:
    from arvid.suites.vbench.dimensions import BUILDERS, WeightsOptions, build
    from arvid.suites.vbench.external import Scorer, score_external
    from arvid.suites.vbench.scoring import score_dimension

    suite = load_suite(options.suite)
    videos = options.videos or layout.videos
    python = options.vbench_python
    names = check_dimensions(options.dimension or (DIMENSIONS if python else BUILDERS))
    outside = [name for name in names if name not in BUILDERS]
    if outside and python is None:
        raise UserError(
            f"{', '.join(outside)}: measured by VBench's package. Name the interpreter of an "
            "environment that has it with --vbench-python."
        )
    chosen = {name: _present(suite, name, videos, options) for name in names}
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(WeightsOptions)}
    weights = WeightsOptions(**{name: path for name, path in given.items() if path is not None})
    with downloading(options.download):
        # all at once, so that missing weights fail before any scoring
        built = {name: build(name, weights) for name in names if name in BUILDERS}
    rank, _ = rank_and_count()
    # VBench's own dimensions come last: only the first process scores them, and no other waits for it.
    for name in sorted(names, key=lambda name: name not in built):
        if name in built:
            result = score_dimension(
                name,
                built[name],
                chosen[name],
                videos,
                layout.scores,
                options=_options(name, options),
            )
        elif rank:
            continue
        else:
            result = score_external(
                name,
                chosen[name],
                Scorer(python=python),
                suite=options.suite,
                videos=videos,
                folder=layout.scores,
            )
        if rank == 0:
            print(f"{name}: {100 * result.score:.2f} % of {len(result.videos)} videos")


def _aggregate(options: argparse.Namespace, layout: Layout) -> None:
    found = results.load_all(layout.scores)
    console().print(format_table(found))
    save_record(make_record(found, layout), layout.record)
    print(f"Wrote {layout.record}.")


def _present(
    suite: Sequence[Prompt], name: str, videos: Path, options: argparse.Namespace
) -> list[Take]:
    filtered = name == FLICKERING and options.static_filter
    samples = options.flickering_samples if filtered else SAMPLES
    wanted = takes(suite, [name], flickering_samples=samples)
    return present(wanted, videos, allow_missing=options.allow_missing)


def _options(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Options that a dimension's score depends on, besides videos and networks."""
    if name != FLICKERING:
        return {}
    return {
        "static_filter": options.static_filter,
        "flickering_samples": options.flickering_samples if options.static_filter else SAMPLES,
    }


def _describe(options: argparse.Namespace, sampler: CheckpointSampler) -> dict[str, Any]:
    """Everything that the videos depend on, as plain data, with the row's setting and factors."""
    rewritten = sha256_file(options.rewritten) if options.rewritten else None
    return {
        **sampler.describe(options.checkpoint),
        "frames": options.frames,
        "motion": options.motion,
        "fps": options.fps,
        "seed": options.seed,
        "prompts": f"rewritten (sha256 {rewritten})" if rewritten else "short",
        "suite_sha256": sha256_file(options.suite),
    }
