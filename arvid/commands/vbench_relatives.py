"""`arvid evaluate vbench-i2v | vbench-long | vbench-2`: sample videos, score them with VBench's code, aggregate scores.

ROW is a folder: a run of arvid, or any folder for the videos of another model. `sample` writes ROW/BENCHMARK/videos,
`score` writes ROW/BENCHMARK/scores, `aggregate` writes ROW/evaluation/BENCHMARK.json. `--repository` is a copy of
github.com/Vchitect/VBench, which has the prompts and the code.

example:
  arvid evaluate vbench-i2v sample runs/nova --repository VBench --checkpoint runs/nova
  arvid evaluate vbench-i2v score runs/nova --repository VBench --vbench-python ~/vbench/bin/python
  arvid evaluate vbench-i2v aggregate runs/nova
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arvid.commands._flags import add_trust_argument, chosen_dtype
from arvid.commands._sampling import CommandParser, add_video_arguments, sampling_options
from arvid.errors import UserError
from arvid.evaluation.records import save as save_record
from arvid.files import sha256_file
from arvid.processes import launched, take_own_gpu
from arvid.suites.manifest import claim, read_manifest
from arvid.suites.vbench import results
from arvid.suites.vbench.record import Layout, format_table, make_record
from arvid.suites.vbench.relative_suite import (
    IMAGES,
    RelativeTake,
    load_entries,
    load_relative_texts,
    nearest_ratio,
    relative_takes,
    require_images,
)
from arvid.suites.vbench.relatives import RELATIVES, Relative
from arvid.suites.vbench.suite import check_dimensions, present
from arvid.terminal import console

if TYPE_CHECKING:
    import numpy as np

    from arvid.suites.checkpoint_sampler import CheckpointSampler


def add_arguments(parser: argparse.ArgumentParser, suite: str) -> None:
    """Declare the options of a benchmark."""
    relative = RELATIVES[suite]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    steps = parser.add_subparsers(
        dest="step", metavar="STEP", required=True, parser_class=CommandParser
    )
    _add_sample(steps.add_parser("sample", help="generate the videos with a checkpoint"), relative)
    _add_score(steps.add_parser("score", help="score a folder of videos"), relative)
    aggregate = steps.add_parser("aggregate", help="aggregate scores: table and result record")
    aggregate.add_argument("folder", type=Path, metavar="ROW", help="the row's folder")


def run(options: argparse.Namespace, suite: str) -> int:
    """Run the command; returns the exit code."""
    relative, layout = RELATIVES[suite], Layout(options.folder, suite)
    if options.step == "sample":
        _sample(options, relative, layout)
    elif launched()[0] == 0:
        if options.step == "score":
            _score(options, relative, layout)
        else:
            _aggregate(relative, layout)
    return 0


def _add_common(parser: argparse.ArgumentParser, relative: Relative) -> None:
    parser.add_argument("folder", type=Path, metavar="ROW", help="the row's folder")
    parser.add_argument(
        "--repository",
        type=Path,
        required=True,
        help=f"copy of github.com/Vchitect/VBench; it has {relative.prompts}",
    )
    parser.add_argument(
        "--dimension",
        action="append",
        metavar="NAME",
        help=f"use only this dimension; may be repeated ({', '.join(relative.rules.dimensions)})",
    )
    if relative.has_images:
        parser.add_argument(
            "--ratio",
            metavar="W-H",
            help=f"ratio of the images: a folder in {IMAGES} (default of `sample`: nearest to the model's frames)",
        )


def _add_sample(parser: CommandParser, relative: Relative) -> None:
    _add_common(parser, relative)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder or file")
    add_trust_argument(parser)
    parser.add_argument(
        "--rewritten",
        type=Path,
        metavar="FILE",
        help="rewritten prompts for the model: a JSON object {prompt: text}, or NOVA's JSON. File names keep the "
        "original prompts",
    )
    add_video_arguments(parser)


def _add_score(parser: argparse.ArgumentParser, relative: Relative) -> None:
    _add_common(parser, relative)
    parser.add_argument(
        "--videos", type=Path, help="folder of the videos (default: the row's sampled videos)"
    )
    parser.add_argument(
        "--vbench-python",
        type=Path,
        metavar="PYTHON",
        required=True,
        help=f"Python interpreter of an environment for {relative.rules.title}'s code",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score incomplete videos; not comparable"
    )


def _prompts(options: argparse.Namespace, relative: Relative) -> Path:
    path: Path = options.repository / relative.prompts
    return path


def _sample(options: argparse.Namespace, relative: Relative, layout: Layout) -> None:
    from arvid.suites.checkpoint_sampler import CheckpointSampler
    from arvid.suites.vbench.sampling import write_missing
    from arvid.training.generator_module import load_generator

    entries = load_entries(_prompts(options, relative), relative)
    wanted = relative_takes(entries, relative, options.dimension or relative.rules.dimensions)
    entries = tuple(take.entry for take in wanted)
    texts = load_relative_texts(options.rewritten, entries) if options.rewritten else None
    take_own_gpu()
    model = load_generator(options.checkpoint, dtype=chosen_dtype(options.dtype))
    sampler = CheckpointSampler(
        model,
        num_frames=options.frames,
        values={} if options.motion is None else {"motion": options.motion},
        options=sampling_options(options, model.sampling),
    )
    images = _images(options, model.clip_shape) if relative.has_images else None
    if images is not None:
        require_images(entries, images)
    claim(layout.benchmark, _describe(options, sampler, relative, images))
    index, count = options.shard
    jobs = {
        layout.videos / take.file: partial(_make, take, sampler, texts, images, options.seed)
        for take in wanted[index::count]
    }
    num_made = write_missing(jobs, options.fps)
    share = f" (shard {index} of {count})" if count > 1 else ""
    print(
        f"{num_made} videos generated{share}; these dimensions need {len(wanted)}, in {layout.videos}."
    )


def _make(
    take: RelativeTake,
    sampler: CheckpointSampler,
    texts: dict[str, str] | None,
    images: Path | None,
    seed: int,
) -> np.ndarray:
    """One video (T, H, W, 3). Its first frame is the prompt's image, if there is one."""
    from arvid.data.clips import resize_frames
    from arvid.data.video import read_video

    text = take.entry.text if texts is None else texts[take.entry.text]
    first = None
    if images is not None and take.entry.image is not None:
        _, height, width = sampler.model.clip_shape
        picture = read_video(images / take.entry.image, max_frames=1).frames
        first = resize_frames(picture, (height, width))[None]
    return sampler([text], take.seed(seed), first_frames=first)[0]


def _images(options: argparse.Namespace, clip_shape: tuple[int, int, int]) -> Path:
    """The folder of the images with the chosen ratio. Raises UserError if it does not exist."""
    folder: Path = options.repository / IMAGES
    ratio = options.ratio or nearest_ratio(folder, *clip_shape[1:])
    if not (folder / ratio).is_dir():
        raise UserError(
            f"There is no {folder / ratio}. Download the images with VBench's vbench2_beta_i2v/download_data.sh, and "
            "make images of another ratio with its crop_to_diff_ratio.py."
        )
    return folder / ratio


def _describe(
    options: argparse.Namespace,
    sampler: CheckpointSampler,
    relative: Relative,
    images: Path | None,
) -> dict[str, Any]:
    """Everything that the videos depend on, as plain data, with the row's setting and factors."""
    rewritten = sha256_file(options.rewritten) if options.rewritten else None
    return {
        **sampler.describe(options.checkpoint),
        "frames": options.frames,
        "motion": options.motion,
        "fps": options.fps,
        "seed": options.seed,
        "prompts": f"rewritten (sha256 {rewritten})" if rewritten else "original",
        "suite_sha256": sha256_file(_prompts(options, relative)),
        **({} if images is None else {"ratio": images.name}),
    }


def _score(options: argparse.Namespace, relative: Relative, layout: Layout) -> None:
    from arvid.suites.vbench.external import Scorer, score_external

    entries = load_entries(_prompts(options, relative), relative)
    videos = options.videos or layout.videos
    names = check_dimensions(
        options.dimension or relative.rules.dimensions, relative.rules.dimensions
    )
    ratio = _ratio(options, layout) if relative.has_images else ""
    root = (options.repository / relative.root).resolve()
    scorer = Scorer(
        python=options.vbench_python,
        driver="_relatives_driver.py",
        arguments=(relative.name, str(root), ratio),
        rules=relative.rules,
        made_with={"ratio": ratio} if ratio else {},
        makes_folders=relative.name == "vbench-long",
    )
    # All before the first is scored, which takes long.
    chosen = {
        name: present(
            relative_takes(entries, relative, [name]), videos, allow_missing=options.allow_missing
        )
        for name in names
    }
    for name, found in chosen.items():
        result = score_external(
            name,
            found,
            scorer,
            suite=_prompts(options, relative),
            videos=videos,
            folder=layout.scores,
        )
        print(f"{name}: {100 * result.score:.2f} % of {len(result.videos)} videos")


def _ratio(options: argparse.Namespace, layout: Layout) -> str:
    """The ratio of the first frames (images) of the videos. Raises UserError if it is unknown."""
    ratio = options.ratio or (read_manifest(layout.benchmark) or {}).get("ratio")
    if not ratio:
        raise UserError(
            "These videos were not sampled by arvid. Give the ratio of their images, such as --ratio 16-9."
        )
    return str(ratio)


def _aggregate(relative: Relative, layout: Layout) -> None:
    found = results.load_all(layout.scores, relative.rules)
    console().print(format_table(found, relative.rules))
    save_record(make_record(found, layout, relative.rules), layout.record)
    print(f"Wrote {layout.record}.")
