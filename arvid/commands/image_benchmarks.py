"""`arvid evaluate geneval | t2i-compbench | dpg-bench`: sample images, run the scorer, aggregate the scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arvid.commands._flags import (
    add_pipeline_arguments,
    add_shard_argument,
    add_trust_argument,
    chosen_dtype,
)
from arvid.commands._sampling import CommandParser, add_sampling_arguments, sampling_options
from arvid.processes import launched, take_own_gpu
from arvid.ranges import at_least
from arvid.suites.image_benchmarks.benchmark import ImageBenchmark
from arvid.suites.image_benchmarks.dpg_bench import DpgBench
from arvid.suites.image_benchmarks.geneval import GenEval
from arvid.suites.image_benchmarks.record import write_record
from arvid.suites.image_benchmarks.sampling import DEFAULT_SEED, rewritten, sample_part
from arvid.suites.image_benchmarks.scorer import run_scorer
from arvid.suites.image_benchmarks.t2i_compbench import CATEGORIES, T2ICompBench
from arvid.suites.prompts import read_rewritten

if TYPE_CHECKING:
    from arvid.suites.image_benchmarks.sampling import ImageSampler

_PROMPTS = {
    "geneval": "evaluation_metadata.jsonl",
    "t2i-compbench": "folder of <category>_val.txt",
    "dpg-bench": "folder of .txt files, one for each prompt",
}
_EXAMPLES = {
    "geneval": """examples:
  arvid evaluate geneval sample --checkpoint runs/nova --prompts evaluation_metadata.jsonl --out runs/nova
  torchrun --nproc-per-node 8 -m -- arvid evaluate geneval sample --pipeline NAME --prompts ... --out ...
  arvid evaluate geneval score runs/nova --scorer geneval --detector detector --scorer-python envs/geneval/bin/python
  arvid evaluate geneval aggregate runs/nova""",
    "t2i-compbench": """examples:
  arvid evaluate t2i-compbench sample --checkpoint runs/nova --prompts T2I-CompBench/examples/dataset --out runs/nova
  arvid evaluate t2i-compbench score runs/nova --scorer T2I-CompBench --scorer-python envs/t2i/bin/python
  arvid evaluate t2i-compbench aggregate runs/nova --prompts T2I-CompBench/examples/dataset""",
    "dpg-bench": """examples:
  arvid evaluate dpg-bench sample --checkpoint runs/nova --prompts ELLA/dpg_bench/prompts --out runs/nova
  arvid evaluate dpg-bench score runs/nova --scorer ELLA --scorer-python envs/dpg/bin/python
  arvid evaluate dpg-bench aggregate runs/nova --questions ELLA/dpg_bench/dpg_bench.csv""",
}
SUITES = tuple(_EXAMPLES)


def add_arguments(parser: argparse.ArgumentParser, suite: str) -> None:
    """Declare the options of one of `SUITES`."""
    parser.description = f"{_benchmark_class(suite).__name__}: sample, score and aggregate."
    parser.epilog = _EXAMPLES[suite]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=CommandParser
    )

    def action(name: str, summary: str) -> CommandParser:
        return actions.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_EXAMPLES[suite],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_sample(action("sample", "generate the missing images"), suite)
    _add_score(action("score", "run the benchmark's own scorer on the images"), suite)
    _add_aggregate(action("aggregate", "scores and result record from the scorer's output"), suite)


def run(options: argparse.Namespace, suite: str) -> int:
    """Run the command; returns the exit code."""
    actions: dict[str, Callable[[argparse.Namespace, ImageBenchmark], None]] = {
        "sample": _sample,
        "score": _score,
        "aggregate": _aggregate,
    }
    if options.action == "sample" or launched()[0] == 0:  # processes share only the sampling
        actions[options.action](options, _benchmark(options, suite))
    return 0


def _benchmark_class(suite: str) -> type[ImageBenchmark]:
    classes: tuple[type[ImageBenchmark], ...] = (GenEval, T2ICompBench, DpgBench)
    return next(cls for cls in classes if cls.name == suite)


def _add_sample(parser: CommandParser, suite: str) -> None:
    parser.add_argument("--prompts", type=Path, required=True, help=_PROMPTS[suite])
    parser.add_argument(
        "--out", dest="row", type=Path, required=True, help="the row's folder: a run or another one"
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help="run folder or file of arvid")
    add_trust_argument(parser)
    model.add_argument("--pipeline", metavar="NAME", help="diffusers pipeline: hub name or folder")
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--rewritten", type=Path, metavar="JSON", help="rewritten (dense) prompts, as NOVA uses"
    )
    parser.add_argument(
        "--seed",
        type=at_least(0).integer,
        default=DEFAULT_SEED,
        help="seed of each prompt's first image",
    )
    add_shard_argument(parser, "prompt")
    _add_categories(parser, suite)
    add_sampling_arguments(parser)


def _add_score(parser: argparse.ArgumentParser, suite: str) -> None:
    repository = _benchmark_class(suite).repository
    parser.add_argument("row", type=Path, metavar="ROW", help="the row's folder: --out of `sample`")
    parser.add_argument("--scorer", type=Path, required=True, help=f"checkout of {repository}")
    parser.add_argument(
        "--scorer-python",
        required=True,
        metavar="PYTHON",
        help="Python interpreter of the scorer's own environment",
    )
    if suite == GenEval.name:
        parser.add_argument(
            "--detector", type=Path, required=True, help="folder with the detector's weights"
        )
    if suite == DpgBench.name:
        parser.add_argument(
            "--questions", type=Path, help="dpg_bench.csv (default: the checkout's)"
        )
    _add_categories(parser, suite)


def _add_aggregate(parser: argparse.ArgumentParser, suite: str) -> None:
    parser.add_argument("row", type=Path, metavar="ROW", help="the row's folder: --out of `sample`")
    parser.add_argument("--name", help="name of the row (default: the model's)")
    if suite == DpgBench.name:
        parser.add_argument("--questions", type=Path, required=True, help="dpg_bench.csv")
    if suite == T2ICompBench.name:
        parser.add_argument(
            "--prompts", type=Path, help="folder of the prompt lists; needed for `complex`"
        )
    _add_categories(parser, suite)


def _add_categories(parser: argparse.ArgumentParser, suite: str) -> None:
    if suite == T2ICompBench.name:
        parser.add_argument(
            "--category",
            action="append",
            choices=tuple(CATEGORIES),
            help="use only this category; may be repeated",
        )


def _benchmark(options: argparse.Namespace, suite: str) -> ImageBenchmark:
    given = vars(options)
    if suite == GenEval.name:
        return GenEval(options.row, detector=given.get("detector"))
    if suite == DpgBench.name:
        return DpgBench(options.row, questions=given.get("questions"))
    return T2ICompBench(
        options.row,
        categories=options.category or tuple(CATEGORIES),
        prompt_lists=given.get("prompts"),
    )


def _sample(options: argparse.Namespace, benchmark: ImageBenchmark) -> None:
    parts = benchmark.parts(options.prompts)
    if options.rewritten:
        texts = read_rewritten(options.rewritten)
        parts = [rewritten(part, texts) for part in parts]
    take_own_gpu()
    sampler, model = _sampler(options)
    for part in parts:
        sample_part(part, sampler, model=model, seed=options.seed, shard=options.shard)
    images = sum(batch.num_images for part in parts for batch in part.batches)
    print(
        f"Shard {options.shard[0]}/{options.shard[1]} of {images} images is in {benchmark.folder}."
    )


def _sampler(options: argparse.Namespace) -> tuple[ImageSampler, dict[str, Any]]:
    from arvid.evaluation.pipelines import load_pipeline
    from arvid.suites.checkpoint_sampler import CheckpointSampler
    from arvid.suites.image_benchmarks.samplers import PipelineSampler, as_images
    from arvid.training.generator_module import load_generator

    dtype = chosen_dtype(options.dtype)
    if options.checkpoint:
        model = load_generator(options.checkpoint, dtype=dtype)
        sampling = sampling_options(options, model.sampling)
        clips = CheckpointSampler(model, num_frames=1, options=sampling)
        return as_images(clips), clips.describe(options.checkpoint)
    described = {
        "kind": "pipeline",
        "name": options.pipeline,
        "arguments": options.pipeline_options,
        "dtype": dtype,
    }
    pipeline = load_pipeline(options.pipeline, dtype)
    return PipelineSampler(pipeline, options.pipeline_options), described


def _score(options: argparse.Namespace, benchmark: ImageBenchmark) -> None:
    runs = benchmark.scorer_runs(options.scorer.absolute())
    run_scorer(runs, options.scorer_python, benchmark.repository)


def _aggregate(options: argparse.Namespace, benchmark: ImageBenchmark) -> None:
    record = write_record(benchmark, benchmark.metrics(), options.name)
    for metric in record.metrics:
        error = "" if metric.spread is None else f" ± {metric.spread:.4f}"
        print(f"{metric.heading}: {metric.value:.4f}{error} ({metric.count})")
