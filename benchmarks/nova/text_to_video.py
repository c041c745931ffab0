"""NOVA's text-to-video table (arXiv 2412.14169, table 3, and the final table of the poster): VBench.

scales:
  demo    a CPU, minutes: clips of a NOVA trained on sprites, or on your own clips (--data, --tokenizer), from their
          captions at several guidance scales, with metrics that need no download
  lab     the short prompts of six dimensions that arvid computes itself, for your own checkpoints
  paper   all sixteen dimensions

At lab and paper each --checkpoint gets a row below --out. Clips are sampled as in NOVA's evaluation (five per prompt,
12 frames per second, motion 5, guidance 7), and the dimensions are computed (docs/vbench.md; nine of them need
--vbench-python). With --rewritten each checkpoint gets a second row, "NAME + rewriter". --row names scored rows.

examples:
  arvid bench nova/text_to_video
  arvid bench nova/text_to_video --scale paper --checkpoint osp480=osp480.ckpt --suite VBench_full_info.json \\
    --rewritten vbench_dense.json --vbench-python ~/vbench/bin/python

Writes table.md, results.json and, at the scale demo, index.html and clips.png (for each caption a real clip, then one
clip per guidance scale).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from arvid.benchmarks.nova import _common as nova
from arvid.commands._suites import run_suite
from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord, load
from arvid.experiments.paper import plain_records, write_page
from arvid.experiments.variants import folders, named_paths, score
from arvid.report import tables
from arvid.report.page import write_report
from arvid.suites.vbench.record import Layout
from arvid.training.generator_module import load_generator

COLUMNS = {
    "vbench-total": "total ↑",
    "vbench-quality": "quality ↑",
    "vbench-semantic": "semantic ↑",
    "vbench-aesthetic-quality": "aesthetic quality",
    "vbench-object-class": "object class",
    "vbench-multiple-objects": "multiple objects",
    "vbench-human-action": "human action",
    "vbench-spatial-relationship": "spatial relationship",
    "vbench-scene": "scene",
    "vbench-appearance-style": "appearance style",
    "vbench-overall-consistency": "overall consistency",
    "vbench-dynamic-degree": "dynamic degree",
}
"""Metrics of our records and the paper's headings."""
PUBLISHED = Path(__file__).with_name("text_to_video.csv")
LAB_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "appearance_style",
)
"""Dimensions that arvid computes itself, without temporal flickering, which needs many clips."""
AS_RELEASED = (
    *("--guidance=7", "--num-sets=128", "--diffusion-steps=25", "--fps=12", "--seed=1337"),
    "--flickering-samples=5",
)
"""Sampling options of the released evaluation script."""
MOTION = "--motion=5"
NOTES = (
    "Published: table 3 of the submission; the rows of Emu3 and of the final NOVA are the poster's, which has no "
    "appearance style and overall consistency. Dynamic degree stands in the appendix (table 2). NOVA's seconds are "
    "those of an A100 of 40 GB in batches of 24.",
)


def main() -> None:
    """Draw, measure, write."""
    options = parse_arguments()
    records: list[ResultRecord] = []
    lines: list[str] = []
    notes: list[str] = []
    if options.scale == "demo":
        records, lines, notes = demo(options)
    else:
        notes = [note for row in suite_rows(options) for note in row]
    ours = found_records(options)
    lines = [*vbench_table(ours), *lines]
    results = {
        "scale": options.scale,
        "published": nova.read_published(PUBLISHED),
        "vbench": {name: {m.name: m.value for m in r.metrics} for name, r in ours.items()},
        "records": plain_records(records),
    }
    write_page(options.out, "NOVA: text to video", lines, [*NOTES, *notes], results)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = nova.parser(__doc__ or "", "runs/nova-text-to-video")
    parser.add_argument("--run", type=Path, help="demo: a trained model (train one)")
    for name, metavar, what in (
        ("checkpoint", "NAME=FILE", "lab, paper: whose clips are drawn; may be repeated"),
        ("row", "NAME=FOLDER", "a row with a record of VBench; may be repeated"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=what)
    parser.add_argument("--suite", type=Path, help="VBench_full_info.json")
    parser.add_argument("--rewritten", type=Path, metavar="FILE", help="NOVA's dense prompts")
    parser.add_argument("--vbench-python", type=Path, metavar="PYTHON", help="has vbench")
    return nova.read_arguments(parser, own_clips=False)


def suite_rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Sample, score and aggregate row by row. Returns notes on dimensions that could not be computed."""
    if not (options.checkpoint and options.suite) and not options.row:
        raise UserError(
            f"The scale {options.scale} needs --checkpoint NAME=FILE with --suite VBench_full_info.json, or --row."
        )
    for name, checkpoint in named_paths(options.checkpoint).items():
        yield suite_row(options.out / name, checkpoint, [], options)
        if options.rewritten:
            row = options.out / f"{name} + rewriter"
            yield suite_row(row, checkpoint, [f"--rewritten={options.rewritten}"], options)


def suite_row(
    row: Path, checkpoint: Path, extra: list[str], options: argparse.Namespace
) -> list[str]:
    """Run the steps of `arvid evaluate vbench` for one row. Returns a note if it could not be scored."""
    dimensions = LAB_DIMENSIONS if options.scale == "lab" else ()
    common = [str(row), f"--suite={options.suite}", *(f"--dimension={d}" for d in dimensions)]
    how = [*AS_RELEASED, *([MOTION] if moves(checkpoint) else []), *extra, *options.fit_options]
    run_suite("vbench", ["sample", *common, f"--checkpoint={checkpoint}", *how])
    python = [f"--vbench-python={options.vbench_python}"] if options.vbench_python else []
    try:
        scoring = ["--flickering-samples=5", "--no-static-filter", *python]
        run_suite("vbench", ["score", *common, *scoring])
        run_suite("vbench", ["aggregate", str(row)])
    except UserError as error:
        return [f"{row.name} is not scored: {error}"]
    return []


def moves(checkpoint: Path) -> bool:
    """Whether a model takes a motion score."""
    return "motion" in load_generator(checkpoint).conditioner.sizes


def found_records(options: argparse.Namespace) -> dict[str, ResultRecord]:
    """Records of VBench by the rows' names."""
    rows = named_paths(options.row)
    for name in named_paths(options.checkpoint):
        rows |= {n: options.out / n for n in (name, f"{name} + rewriter")}
    paths = {name: Layout(row).record for name, row in rows.items()}
    return {name: load(path) for name, path in paths.items() if path.is_file()}


def vbench_table(ours: dict[str, ResultRecord]) -> list[str]:
    """Our rows below the published ones."""
    rows = {n: {m.name: f"{m.value:.2f}" for m in r.metrics} for n, r in ours.items()}
    return ["## VBench", "", *nova.published_table(PUBLISHED, COLUMNS, rows), ""]


def demo(options: argparse.Namespace) -> tuple[list[ResultRecord], list[str], list[str]]:
    """Clips at several guidance scales: records, lines of the page, and notes on what was left out."""
    run = nova.trained_run(options)
    protocol, notes = nova.protocol(options)
    records = score(nova.guided(run), [protocol], options.out)
    comparison = write_report(folders(records), options.out, title="NOVA: guidance")
    shown = [r for r in records if r.name == "real" or r.row == "trained"]
    nova.write_clips(options.out / "clips.png", shown)
    return records, [tables.markdown(comparison)], notes


if __name__ == "__main__":
    main()
