"""NOVA's text-to-image table (arXiv 2412.14169, table 2 and the final table of the poster).

T2I-CompBench, GenEval and DPG-Bench, with and without rewritten prompts, the published rows beside ours.

scales:
  demo    a CPU, minutes: images of a NOVA trained on sprites, or on your own clips (--data, --tokenizer), from their
          captions at several guidance scales. The benchmarks' judges do not know sprites; arvid's classifies shape
          and colour
  lab     every tenth prompt of the benchmarks, for your own checkpoints
  paper   all prompts

At lab and paper each --checkpoint gets a folder below --out with the images of all suites whose prompts are given. With
--rewritten it gets a second folder, "NAME + rewriter" (GenEval's dense prompts). The benchmarks' own judges are called
by `arvid evaluate SUITE score` (docs/image-benchmarks.md). The page lists what is not scored yet. Repeat the command
after scoring to update the table.

examples:
  arvid bench nova/text_to_image
  arvid bench nova/text_to_image --scale paper --checkpoint sd512=sd512.ckpt --geneval evaluation_metadata.jsonl \\
    --rewritten geneval_dense.json --t2i-compbench T2I-CompBench/examples/dataset --dpg-bench ELLA/dpg_bench/prompts

Writes table.md, results.json and, at the scale demo, index.html and images.png (for each caption a real frame, then one
image per guidance scale).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from arvid.benchmarks.nova import _common as nova
from arvid.commands._suites import run_suite
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.windows import Windows
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import EVALUATION_FOLDER, ResultRecord, load
from arvid.evaluation.rows import validation_set
from arvid.experiments.paper import plain_records, write_page
from arvid.experiments.variants import folders, named_paths, score, usable
from arvid.files import atomic_write
from arvid.report import tables
from arvid.report.page import write_report
from arvid.sampling.contact_sheet import write_sheet
from arvid.training.generator_module import load_generator

COLUMNS = {
    "t2i-color": ("T2I color", 100.0),
    "t2i-shape": ("T2I shape", 100.0),
    "t2i-texture": ("T2I texture", 100.0),
    "geneval-overall": ("GenEval", 1.0),
    "geneval-single-object": ("single", 1.0),
    "geneval-two-object": ("two", 1.0),
    "geneval-counting": ("counting", 1.0),
    "geneval-colors": ("colors", 1.0),
    "geneval-position": ("position", 1.0),
    "geneval-color-attr": ("color attr.", 1.0),
    "dpg": ("DPG", 1.0),
}
"""Metric name in our records -> the poster's heading, and the factor from our unit to the poster's."""
CATEGORIES = ("color", "shape", "texture", "spatial", "non-spatial", "complex")
POSTER = Path(__file__).with_name("text_to_image.csv")
SUBMISSION = Path(__file__).with_name("t2i_compbench.csv")
SUITES = {"geneval": "geneval", "t2i-compbench": "t2i_compbench", "dpg-bench": "dpg_bench"}
"""Suite -> option for its prompts."""
AS_RELEASED = ("--guidance=7", "--num-sets=128", "--diffusion-steps=25")
"""Sampling options of the released evaluation script."""
LAB_STRIDE = 10
NUM_IMAGES = 128
NOTES = (
    "Published: the first table is the final one (poster), T2I-CompBench in percent, the second the submission's "
    "(images of 512x512, ten for each prompt). The README's 0.75 for GenEval is the row with rewritten prompts.",
)


def main() -> None:
    """Draw, collect, write."""
    options = parse_arguments()
    if options.scale == "demo":
        records, lines, notes = demo(options)
    else:
        notes = [note for row in suite_rows(options) for note in row]
        records, lines = [], []
    ours = {name: row_records(path) for name, path in row_folders(options).items()}
    lines = [*published_tables(ours), *lines]
    results = {
        "scale": options.scale,
        "published": {path.stem: nova.read_published(path) for path in (POSTER, SUBMISSION)},
        "suites": {
            n: {m.name: m.value for r in found for m in r.metrics} for n, found in ours.items()
        },
        "records": plain_records(records),
    }
    write_page(options.out, "NOVA: text to image", lines, [*NOTES, *notes], results)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = nova.parser(__doc__ or "", "runs/nova-text-to-image")
    parser.add_argument("--run", type=Path, help="demo: a trained model (train one)")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="lab, paper: whose images are drawn; may be repeated",
    )
    parser.add_argument("--geneval", type=Path, help="evaluation_metadata.jsonl")
    parser.add_argument("--t2i-compbench", type=Path, help="folder of <category>_val.txt")
    parser.add_argument("--dpg-bench", type=Path, help="folder of .txt files")
    parser.add_argument("--dpg-questions", type=Path, help="dpg_bench.csv")
    parser.add_argument("--rewritten", type=Path, metavar="JSON", help="GenEval's dense prompts")
    return nova.read_arguments(parser, own_clips=False)


# The benchmarks


def suite_rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Sample and aggregate row by row. Returns notes on what is not scored yet."""
    given = {s: p for s, key in SUITES.items() if (p := getattr(options, key)) is not None}
    if not given or not options.checkpoint:
        raise UserError(
            f"The scale {options.scale} needs --checkpoint NAME=FILE and the prompts of a suite: "
            f"{', '.join('--' + suite for suite in SUITES)}."
        )
    prompts = {suite: prompt_list(suite, path, options) for suite, path in given.items()}
    for name, checkpoint in named_paths(options.checkpoint).items():
        for suite, path in prompts.items():
            yield suite_row(suite, path, checkpoint, options.out / name, [], options)
        if options.rewritten and "geneval" in prompts:
            extra = [f"--rewritten={options.rewritten}"]
            row = options.out / f"{name} + rewriter"
            yield suite_row("geneval", prompts["geneval"], checkpoint, row, extra, options)


def suite_row(
    suite: str,
    prompts: Path,
    checkpoint: Path,
    row: Path,
    extra: list[str],
    options: argparse.Namespace,
) -> list[str]:
    """Sample a suite's images of a row and aggregate its judge's answers. Returns notes on what is missing."""
    how = [*AS_RELEASED, *extra, *options.fit_options]
    where = [f"--prompts={prompts}", f"--out={row}", f"--checkpoint={checkpoint}"]
    run_suite(suite, ["sample", *where, *how])
    questions = {"dpg-bench": options.dpg_questions, "t2i-compbench": None}.get(suite)
    more = [f"--questions={questions}"] if questions else []
    more += [f"--prompts={prompts}"] if suite == "t2i-compbench" else []
    try:
        run_suite(suite, ["aggregate", str(row), f"--name={row.name}", *more])
    except (UserError, SystemExit) as error:
        return [
            f"{row.name}, {suite}: not scored yet (`arvid evaluate {suite} score '{row}' ...`). {error}"
        ]
    return []


def prompt_list(suite: str, path: Path, options: argparse.Namespace) -> Path:
    """The prompts of a suite. At the scale lab every tenth prompt, in files below OUT/prompts."""
    if options.scale == "paper":
        return path
    target = Path(options.out) / "prompts" / suite
    if suite == "dpg-bench":
        for file in sorted(path.glob("*.txt"))[::LAB_STRIDE]:
            with atomic_write(target / file.name) as temporary:
                shutil.copyfile(file, temporary)
        return target
    files = [path] if path.is_file() else sorted(path.glob("*_val.txt"))
    for file in files:
        kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[::LAB_STRIDE]
        with atomic_write(target / file.name) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
    return target / path.name if path.is_file() else target


def row_folders(options: argparse.Namespace) -> dict[str, Path]:
    """The rows of the checkpoints that have records."""
    names = [
        name for given in named_paths(options.checkpoint) for name in (given, f"{given} + rewriter")
    ]
    return {n: options.out / n for n in names if (options.out / n / EVALUATION_FOLDER).is_dir()}


def row_records(row: Path) -> list[ResultRecord]:
    """A row's records of the suites."""
    paths = (row / EVALUATION_FOLDER / f"{suite}.json" for suite in SUITES)
    return [load(path) for path in paths if path.is_file()]


def published_tables(ours: dict[str, list[ResultRecord]]) -> list[str]:
    """Both tables, our rows below the published ones."""
    poster: dict[str, dict[str, str]] = {}
    submission: dict[str, dict[str, str]] = {}
    for name, records in ours.items():
        values = {m.name: m.value for record in records for m in record.metrics}
        poster[name] = {
            key: f"{values[key] * factor:.2f}"
            for key, (_, factor) in COLUMNS.items()
            if key in values
        }
        found = {f"t2i-{c}": values[f"t2i-{c}"] for c in CATEGORIES if f"t2i-{c}" in values}
        if len(found) == len(CATEGORIES):
            found["mean"] = float(np.mean(list(found.values())))
        submission[name] = {key: f"{value:.4f}" for key, value in found.items()}
    headings = {key: heading for key, (heading, _) in COLUMNS.items()}
    return [
        *("## T2I-CompBench, GenEval, DPG-Bench", ""),
        *nova.published_table(POSTER, headings, poster),
        *("", "## T2I-CompBench, all categories", ""),
        *nova.published_table(SUBMISSION, {f"t2i-{c}": c for c in CATEGORIES}, submission),
        "",
    ]


# The demo


def demo(options: argparse.Namespace) -> tuple[list[ResultRecord], list[str], list[str]]:
    """Images at several guidance scales: records, lines of the page, and notes on what was left out."""
    run = nova.trained_run(options)
    model = load_generator(run)
    images = Windows(validation_set(model), num_frames=1)
    sprites = isinstance(images.dataset, Sprites)
    protocol, notes = usable(
        Protocol(
            name="nova-images",
            summary="Single frames of clips from their captions.",
            task="generation",
            metrics=("fd-pixels", *(("attributes-over-time",) if sprites else ())),
            num_clips=options.num_clips or NUM_IMAGES,
            too_few="half",
            clip=ClipSpec(num_frames=1, size=model.clip_shape[1:]),
        )
    )
    records = score(nova.guided(run), [protocol], options.out, real={protocol.name: images})
    comparison = write_report(folders(records), options.out, title="NOVA: images")
    shown = [r for r in records if r.name == "real" or r.row == "trained"]
    clips = nova.generated_clips(shown, 8)[:, :, 0]  # (prompt, row, H, W, 3)
    write_sheet(
        options.out / "images.png",
        clips.swapaxes(0, 1)[None],  # prompts in the place of frames
        rows=[record.name for record in shown],
        columns=[clip.prompt for clip in shown[0].clips[:8]],
    )
    return records, [tables.markdown(comparison)], notes


if __name__ == "__main__":
    main()
