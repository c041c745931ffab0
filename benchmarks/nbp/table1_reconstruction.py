"""Table 1 and figure 6 of Next-Block Prediction (arXiv 2502.07737): reconstruction quality of video tokenizers.

Scores tokenizers under NBP's reconstruction protocols, beside the paper's rows. Also gives the cost of each: bits,
parameters, speed and codebook usage. Published values may use other clips than NBP's script. So UCF-101 and
Kinetics-600 have two variants each: every clip of the validation list once, and 10,000 clips of the training list, some
of them twice, as for MAGVIT's distances.

scales:
  demo    minutes on a CPU: 64 clips of sprites, or of any folder of videos (--data), and the included tokenizers.
          Metrics without weights are left out, and the table says so.
  lab     1,000 clips of each named set
  paper   the full protocols

examples:
  arvid bench nbp/table1_reconstruction
  arvid bench nbp/table1_reconstruction --scale paper --tokenizer nbp-ucf=ucf.safetensors \\
    --tokenizer nbp-k600=k600.safetensors --ucf101 UCF-101 --ucf101-lists ucfTrainTestlist --k600-val k600/val

Writes table.md, results.json, originals-and-reconstructions.png, figure6.png (clips of 25 frames per second, of which
6.25 are shown: the originals, then each tokenizer) and all result records to --out. Repeat the same command to continue
an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from arvid.contracts import UserError, VideoDataset, VideoTokenizer
from arvid.data.clips import ClipSpec
from arvid.data.collate import normalise, to_uint8
from arvid.data.loading import load_batches
from arvid.data.sprites import Sprites
from arvid.evaluation.external import NO_SETTING
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import ReconstructionRow
from arvid.experiments.paper import Cell, script_parser, table, write_page
from arvid.experiments.variants import usable
from arvid.metrics.codebook import CodebookUse
from arvid.processes import best_device
from arvid.ranges import at_least
from arvid.sampling.contact_sheet import write_sheet
from arvid.training.export import embedded, load_tokenizer

COLUMNS = {
    "rfvd": "rFVD ↓",
    "psnr-pooled": "PSNR ↑",
    "ssim": "SSIM ↑",
    "lpips-nbp": "LPIPS, NBP's ↓",
    "lpips-vgg": "LPIPS (VGG) ↓",
}
"""The paper's four metrics, and standard LPIPS over the same network."""
METRICS = tuple(COLUMNS)
FORMATS = (".4g", ".2f", ".3f", ".4f", ".4f")
TRAINING_CLIPS = 10_000
LAB_CLIPS = 1_000
DEMO_CLIPS = 64
NUM_PICTURED = 4
FIGURE6_FPS = 25.0
FIGURE6_FRAMES = 5
"""Every fourth of 17 frames: 6.25 per second."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class Published:
    """A row of the paper's Table 1: rFVD, PSNR, SSIM and LPIPS of each set; None if missing."""

    method: str
    backbone: str
    quantizer: str
    parameters: str
    bits: int
    ucf101: tuple[float | None, ...] = (None,) * 4
    k600: tuple[float | None, ...] = (None,) * 4


PUBLISHED = (
    Published("MaskGIT", "2D CNN", "VQ", "53M", 10, (216, 21.5, 0.685, 0.1140)),
    Published("TATS", "3D CNN", "VQ", "32M", 14, (162, None, None, None)),
    Published(
        "OmniTokenizer",
        "ViT",
        "VQ",
        "78M",
        13,
        (42, 30.3, 0.910, 0.0733),
        (27, 28.5, 0.883, 0.0945),
    ),
    Published("MAGVIT-v1", "3D CNN", "VQ", "158M", 10, (25, 22.0, 0.701, 0.0990)),
    Published("MAGVIT-v2", "causal 3D CNN", "LFQ", "158M", 18, (16.12, None, None, 0.0694)),
    Published("MAGVIT-v2", "causal 3D CNN", "LFQ", "370M", 18, (8.62, None, None, 0.0537)),
    Published(
        "NBP",
        "causal 3D CNN",
        "FSQ",
        "370M",
        16,
        (15.50, 29.3, 0.893, 0.0648),
        (6.73, 31.3, 0.944, 0.0828),
    ),
)


@dataclass(frozen=True)
class RealSet:
    """Real clips, and the protocol that scores their reconstructions."""

    title: str
    protocol: Protocol
    dataset: VideoDataset
    published: str | None = None
    """Key of the paper's values for this set: `ucf101`, `k600`, or none."""
    where: Path | None = None
    """Folder or manifest of the videos; None for clips that are no files."""
    split_list: Path | None = None
    """List of the videos to take."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost and codebook usage of a tokenizer."""

    tokens: str
    parameters: int
    bits_per_token: float | None
    """None for continuous tokens."""
    bits_per_pixel: float | None
    encode_frames_per_second: float
    decode_frames_per_second: float
    tokens_counted: int
    codebook_share: float | None
    codebook_perplexity: float | None


def main() -> None:
    """Score, count, write."""
    options = parse_arguments()
    started = time.monotonic()
    sets, notes = real_sets(options)
    tokenizers = {
        n: load_tokenizer(p).to(best_device()) for n, p in named_tokenizers(options).items()
    }
    scored = {
        s.title: {n: score(s, n, t, options.out) for n, t in tokenizers.items()} for s in sets
    }
    first = sets[0]
    costs = {n: cost(t, first, n) for n, t in tokenizers.items()}
    write_picture(first, tokenizers, options.out / "originals-and-reconstructions.png")
    figure6 = options.out / "figure6.png"
    write_picture(at_25_fps(first), tokenizers, figure6, num_frames=FIGURE6_FRAMES)
    result = {
        "scale": options.scale,
        "sets": {s.title: s.protocol.describe(s.dataset) for s in sets},
        "metrics": {title: as_json(rows) for title, rows in scored.items()},
        "costs": {name: dataclasses.asdict(found) for name, found in costs.items()},
        "costs_measured_on": first.title,
        "published": [dataclasses.asdict(row) for row in PUBLISHED],
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    lines = page(sets, scored, costs)
    write_page(options.out, "Table 1 of NBP: video reconstruction", lines, notes, result)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/nbp-table1", ("demo", "lab", "paper"))
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="file, checkpoint or embedded name; may be repeated (demo: the embedded ones)",
    )
    parser.add_argument("--data", type=Path, help="demo: folder of videos or manifest (sprites)")
    parser.add_argument(
        "--size", type=at_least(1).integer, default=64, help="demo with --data: pixels (64)"
    )
    parser.add_argument(
        "--num-clips", type=at_least(2).integer, help="clips of each set (default: by scale)"
    )
    parser.add_argument("--ucf101", type=Path, help="folder of UCF-101's class folders")
    parser.add_argument(
        "--ucf101-lists", type=Path, help="folder of trainlist01.txt, testlist01.txt"
    )
    for split in ("val", "train"):
        parser.add_argument(f"--k600-{split}", type=Path, help="folder of videos or manifest")
    return parser.parse_args()


def named_tokenizers(options: argparse.Namespace) -> dict[str, str]:
    """Row name -> file of the tokenizer."""
    if not options.tokenizer and options.scale == "demo":
        return {name: name for name in embedded()}
    if not options.tokenizer:
        raise UserError(f"Name the tokenizers of the scale {options.scale}: --tokenizer NAME=FILE.")
    pairs = [given.partition("=")[::2] for given in options.tokenizer]
    found = {name: path for name, path in ((a, b) if b else (Path(a).stem, a) for a, b in pairs)}
    if len(found) < len(pairs):
        raise UserError(
            "Two tokenizers have the same name: give them different names with --tokenizer NAME=FILE."
        )
    return found


def real_sets(options: argparse.Namespace) -> tuple[list[RealSet], list[str]]:
    """The sets for the scale and options, and notes on what was left out. Raises UserError if there are none."""
    if options.scale == "demo":
        return demo_set(options)
    sets = []
    if options.ucf101:
        if options.ucf101_lists is None:
            raise UserError("--ucf101 needs --ucf101-lists, the folder of the official lists.")
        for split, file in (("val", "testlist01.txt"), ("train", "trainlist01.txt")):
            protocol = variant("nbp-rfvd-ucf101", split, options)
            place = options.ucf101, options.ucf101_lists / file
            clips = real_clips(protocol, *place)
            sets.append(RealSet(f"UCF-101, {split}", protocol, clips, "ucf101", *place))
    for split, where in (("val", options.k600_val), ("train", options.k600_train)):
        if where:
            protocol = variant("nbp-rfvd-k600", split, options)
            clips = real_clips(protocol, where)
            sets.append(RealSet(f"Kinetics-600, {split}", protocol, clips, "k600", where))
    if not sets:
        raise UserError(
            f"The scale {options.scale} needs real clips: --ucf101 with --ucf101-lists, --k600-val, --k600-train."
        )
    return sets, []


def variant(name: str, split: str, options: argparse.Namespace) -> Protocol:
    """NBP's protocol on a split, with more metrics. At the scale lab with fewer clips, shuffled over all classes."""
    protocol = get_protocol(name, num_clips=options.num_clips, metrics=METRICS)
    changes: dict[str, Any] = {"batch_size": BATCH_SIZE, "name": name}
    if split == "train":
        changes |= {
            "real_split": "the training list",
            "num_clips": TRAINING_CLIPS,
            "too_few": "repeat",
            "order": "shuffled",
            "name": f"{name}-train",
        }
    count = options.num_clips or (LAB_CLIPS if options.scale == "lab" else None)
    if count:
        changes |= {"num_clips": count, "order": "shuffled", "name": f"{changes['name']}-{count}"}
    return dataclasses.replace(protocol, **changes)


def demo_set(options: argparse.Namespace) -> tuple[list[RealSet], list[str]]:
    """Sprites or a folder of videos, with the metrics that need no weights or whose weights exist."""
    num = options.num_clips or DEMO_CLIPS
    distance = "fd-efficientnet" if options.data else "fd-sprites"
    protocol = Protocol(
        name="nbp-table1-demo",
        summary="Reconstruction of any clips, 17 frames, as NBP scores its tokenizers.",
        task="reconstruction",
        metrics=(*METRICS, distance),
        clip=ClipSpec(num_frames=17, size=options.size, window="center") if options.data else None,
        num_clips=num,
        scored_frames=17,
        paired_frames=16,
        preprocessing="tats",
        batch_size=BATCH_SIZE,
    )
    protocol, notes = usable(protocol)
    if options.data:
        clips: VideoDataset = real_clips(protocol, options.data)
        protocol = dataclasses.replace(protocol, num_clips=min(num, len(clips)))
        return [RealSet(options.data.name, protocol, clips, where=options.data)], notes
    return [RealSet("Sprites", protocol, Sprites(num, seed=1))], notes


def score(real: RealSet, name: str, tokenizer: VideoTokenizer, out: Path) -> ResultRecord:
    """Score a tokenizer under the set's protocol. The record goes to OUT/records."""
    row = ReconstructionRow(tokenizer, name)
    folder = out / "records" / name
    return evaluate(row, real.protocol, real.dataset, folder, description=NO_SETTING)


@torch.no_grad()
def cost(tokenizer: VideoTokenizer, real: RealSet, name: str) -> Cost:
    """Measure cost and codebook usage of a tokenizer on the clips of a set. The first batch is a warm-up."""
    spec, device = tokenizer.spec, best_device()
    use = CodebookUse(spec.size).to(device) if spec.type == "discrete" else None
    chosen, _ = real.protocol.choose(real.dataset)
    batches = [chosen[i : i + BATCH_SIZE] for i in range(0, len(chosen), BATCH_SIZE)]
    seconds, frames, num_tokens = np.zeros(2), 0, 0
    loaded = load_batches(real.dataset, batches)
    for i, clips in enumerate(tqdm(loaded, f"{name}: cost", len(batches), leave=False)):
        video = torch.stack([normalise(clip.video) for clip in clips]).to(device)
        times = [now(device)]
        tokens = tokenizer.encode(video)
        times.append(now(device))
        tokenizer.decode(tokens)
        times.append(now(device))
        if i or len(batches) == 1:
            seconds += np.diff(times)
            frames += video.shape[0] * video.shape[2]
        if use is not None:
            use.update(tokens)
        num_tokens += math.prod(tokens.shape[:4])
    bits = math.log2(spec.size) if use is not None else None
    share, perplexity = use.compute() if use is not None else (None, None)
    grid = spec.grid(*video.shape[2:])
    return Cost(
        tokens=f"{grid.t}x{grid.h}x{grid.w} of {spec.size} {'ids' if bits else 'channels'}",
        parameters=sum(p.numel() for p in tokenizer.parameters()),
        bits_per_token=bits,
        bits_per_pixel=bits and bits * grid.num_tokens / math.prod(video.shape[2:]),
        encode_frames_per_second=frames / seconds[0],
        decode_frames_per_second=frames / seconds[1],
        tokens_counted=num_tokens,
        codebook_share=share,
        codebook_perplexity=perplexity,
    )


def now(device: torch.device) -> float:
    """Current time, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def at_25_fps(real: RealSet) -> RealSet:
    """The set with clips of figure 6's frame rate; the set itself if its clips are no files."""
    if real.where is None or real.protocol.clip is None:
        return real
    clip = dataclasses.replace(real.protocol.clip, fps=FIGURE6_FPS)
    protocol = dataclasses.replace(real.protocol, clip=clip)
    clips = real_clips(protocol, real.where, real.split_list)
    return dataclasses.replace(real, protocol=protocol, dataset=clips)


@torch.no_grad()
def write_picture(
    real: RealSet, tokenizers: dict[str, VideoTokenizer], path: Path, *, num_frames: int = 9
) -> None:
    """Write a picture of some clips, each with the tokenizers' reconstructions below, in the order of the table."""
    chosen, _ = real.protocol.choose(real.dataset)
    clips = [real.dataset[i].video for i in chosen[:NUM_PICTURED]]
    video = torch.stack([normalise(clip) for clip in clips]).to(best_device())
    made = [to_uint8(t.decode(t.encode(video))).cpu().numpy() for t in tokenizers.values()]
    rows = np.stack([np.stack(clips), *made], axis=1)  # (clip, row, T, H, W, 3)
    write_sheet(path, rows, rows=["clip", *tokenizers], num_frames=num_frames)


def as_json(rows: dict[str, ResultRecord]) -> dict[str, list[dict[str, Any]]]:
    """Each row's metric values with their counts, uncertainties and networks."""
    return {name: [dataclasses.asdict(m) for m in row.metrics] for name, row in rows.items()}


def page(
    sets: list[RealSet], scored: dict[str, dict[str, ResultRecord]], costs: dict[str, Cost]
) -> list[str]:
    """Lines of the page below the title and the notes."""
    lines = [line for real in sets for line in set_table(real, scored[real.title], costs)]
    if not any(real.published for real in sets):
        lines += ["## As published (UCF-101 | Kinetics-600)", "", *published_table(), ""]
    return [*lines, f"## Cost, over the clips of {sets[0].title}", "", *cost_table(costs)]


def set_table(real: RealSet, rows: dict[str, ResultRecord], costs: dict[str, Cost]) -> list[str]:
    """Rows of one set: the paper's and ours. Published LPIPS is in NBP's column; its computation is not documented."""
    found = {name: {m.name: m for m in record.metrics} for name, record in rows.items()}
    others = sorted({m for metrics in found.values() for m in metrics} - COLUMNS.keys())
    extra = [f"{next(iter(found.values()))[name].heading} ↓" for name in others]
    protocol = real.protocol.describe(real.dataset)
    cells: list[list[Cell]] = []
    for row in PUBLISHED if real.published else ():
        values = getattr(row, str(real.published))
        name = f"{row.method} ({row.backbone}, {row.quantizer}), published"
        blank = [""] * (1 + len(others))
        cells.append([name, row.parameters, str(row.bits), *numbers(values), *blank])
    for name, metrics in found.items():
        values = [metrics[m].value if m in metrics else None for m in COLUMNS]
        size = f"{costs[name].parameters / 1e6:.3g}M"
        more = [metrics[m].value for m in others]
        cells.append([name, size, costs[name].bits_per_token, *numbers(values), *more])
    return [
        f"## {real.title}",
        "",
        f"Protocol {protocol['name']} ({protocol['hash']}), {protocol['num_clips']} clips.",
        "",
        *table(("method", "parameters", "bits", *COLUMNS.values(), *extra), cells),
        "",
    ]


def published_table() -> list[str]:
    """Only the paper's rows, for sets that are not comparable with them."""
    rows = [
        [
            f"{row.method} ({row.backbone}, {row.quantizer})",
            row.parameters,
            str(row.bits),
            *numbers(row.ucf101),
            *numbers(row.k600),
        ]
        for row in PUBLISHED
    ]
    return table(("method", "parameters", "bits", *([*COLUMNS.values()][:4] * 2)), rows)


def cost_table(costs: dict[str, Cost]) -> list[str]:
    """Table of cost and codebook usage of each tokenizer."""
    rows = [
        [
            name,
            c.tokens,
            f"{c.parameters:,}",
            c.bits_per_token,
            c.bits_per_pixel,
            c.encode_frames_per_second,
            c.decode_frames_per_second,
            f"{c.codebook_share:.1%}" if c.codebook_share else None,
            c.codebook_perplexity,
            f"{c.tokens_counted:,}",
        ]
        for name, c in costs.items()
    ]
    headings = (
        "tokenizer",
        "tokens",
        "parameters",
        "bits / token",
        "bits / pixel",
        "encode frames / s",
        "decode frames / s",
        "codes used",
        "perplexity",
        "tokens counted",
    )
    return table(headings, rows)


def numbers(values: Sequence[float | None]) -> list[str]:
    """Cells of the paper's metrics, in order; blank if missing."""
    pairs = zip(values, FORMATS, strict=False)
    return [format(value, kind) if value is not None else "" for value, kind in pairs]


if __name__ == "__main__":
    main()
