"""Bottlenecks of a video tokenizer at equal bits: FSQ, LFQ, BSQ and VQ, and a Gaussian beside them.

Trains one backbone with each bottleneck under one recipe, on the same clips, and scores the reconstruction of held-out
clips. All discrete rows have 2^bits ids. A Gaussian has no ids: its row has as many numbers in a token as FSQ, and its
rate is the KL divergence from the standard normal, in bits. That is what an ideal code for its tokens would take, so
it is no equal number of bits.

Without --data the clips are sprites. LPIPS (SqueezeNet) takes the weights of --lpips-backbone, or torchvision's file.
It is left out where both are missing.

examples:
  arvid bench tokenizers/bottlenecks --data weizmann64 --lpips-backbone squeezenet1_1_features.safetensors
  arvid bench tokenizers/bottlenecks --bits 10 --trainer.max_steps=500

Writes table.md, results.json, originals-and-reconstructions.png and all result records to --out. Repeat the same
command to continue an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid.benchmarks.nbp.table1_reconstruction import Cost, RealSet, cost, score, write_picture
from arvid.contracts import UserError, VideoDataset, VideoTokenizer
from arvid.data.clips import ClipSpec
from arvid.data.collate import normalise, to_uint8
from arvid.data.folder import VideoFolder
from arvid.data.loading import load_batches
from arvid.data.manifest import VideoManifest
from arvid.data.sprites import Sprites
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.scores import left_out
from arvid.experiments.paper import Cell, script_parser, table, write_page
from arvid.experiments.variants import Variant, data_options, model_path, train
from arvid.metrics.perceptual import Lpips
from arvid.processes import best_device
from arvid.ranges import at_least, between
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import load_tokenizer

TOKENIZER = "--model.init_args.tokenizer.init_args"
METRICS = ("psnr", "ssim")
NUM_FRAMES = 17
SIZE = 64
"""Height and width of clips from files, pixels."""
VAL_FRACTION = 0.2
"""Share of held-out videos, as in the setting clips-tokenizers."""
BATCH_SIZE = 8
NOTES = (
    "All rows have one backbone, recipe and set of clips, and each bottleneck its default losses. Seconds are those of "
    "one clip, after a first batch; those of the training depend on how many ran side by side.",
    "The Gaussian's bits are its KL divergence: a rate, not a number of bits that was chosen.",
)


def main() -> None:
    """Train, score, write."""
    options = parse_arguments()
    variants = rows(options)
    train(variants, options.out, shared_options(options))
    tokenizers = {
        v.name: load_tokenizer(model_path(v, options.out)).to(best_device()) for v in variants
    }
    real = held_out(options)
    records = {name: score(real, name, t, options.out) for name, t in tokenizers.items()}
    costs = {name: cost(t, real, name) for name, t in tokenizers.items()}
    rates = {n: gaussian_bits(t, real) for n, t in tokenizers.items() if isinstance(t, VAE3D)}
    distances, notes = lpips(tokenizers, real, options.lpips_backbone)
    seconds = {v.name: training_seconds(model_path(v, options.out)) for v in variants}
    write_picture(real, tokenizers, options.out / "originals-and-reconstructions.png")
    result = {
        "bits": options.bits,
        "protocol": real.protocol.describe(real.dataset),
        "metrics": {n: [dataclasses.asdict(m) for m in r.metrics] for n, r in records.items()},
        "costs": {name: dataclasses.asdict(found) for name, found in costs.items()},
        "lpips": distances,
        "kl_bits_per_token": rates,
        "training_seconds": seconds,
    }
    lines = our_table(records, costs, rates, distances, seconds)
    write_page(
        options.out,
        f"Bottlenecks, {real.title}, {options.bits} bits",
        lines,
        [*NOTES, *notes],
        result,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown options go to `fit_options`, for `arvid fit`."""
    parser = script_parser(
        __doc__,
        "runs/bottlenecks",
        epilog="Other options (--trainer.max_steps=500) go to `arvid fit` of all rows.",
    )
    parser.add_argument("--data", type=Path, help="folder of class folders, or manifest (sprites)")
    parser.add_argument(
        "--bits", type=between(2, 18).integer, default=12, help="of an id (12: 4,096 ids)"
    )
    parser.add_argument(
        "--num-clips", type=at_least(2).integer, default=64, help="held-out clips that are scored"
    )
    parser.add_argument(
        "--lpips-backbone", type=Path, help="SqueezeNet's ImageNet weights, .safetensors or .pth"
    )
    options, options_of_fit = parser.parse_known_args()
    options.fit_options = options_of_fit
    return options


# What is trained


def rows(options: argparse.Namespace) -> list[Variant]:
    """A variant for each bottleneck."""
    levels = fsq_levels(options.bits)
    given = {
        "FSQ": ("magvit_fsq", [f"levels={levels}".replace(" ", "")]),
        **{
            name: ("magvit_codebook", [f"bottleneck={name.lower()}", f"bits={options.bits}"])
            for name in ("LFQ", "BSQ", "VQ")
        },
        "Gaussian": ("vae3d", [f"latent_channels={len(levels)}"]),
    }
    kind = "clips" if options.data else "sprites"
    return [
        Variant(
            name=name,
            configs=(f"tokenizers/{kind}-{tokenizer}", f"settings/{kind}-tokenizers"),
            options=tuple(f"{TOKENIZER}.{option}" for option in changes),
        )
        for name, (tokenizer, changes) in given.items()
    ]


def fsq_levels(bits: int) -> list[int]:
    """Levels 8 and 4 whose product is 2^bits: as few numbers as possible."""
    num_fours = -bits % 3
    return [8] * ((bits - 2 * num_fours) // 3) + [4] * num_fours


def shared_options(options: argparse.Namespace) -> list[str]:
    """Common options of `arvid fit`. The user's options come last and win."""
    return [*(data_options(options.data) if options.data else []), *options.fit_options]


def training_seconds(checkpoint: Path) -> float:
    """Wall time of a training."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return float(stored["callbacks"]["Throughput"]["seconds"])


# What is scored


def held_out(options: argparse.Namespace) -> RealSet:
    """Clips that no row was trained on, with the protocol."""
    dataset, title = validation_clips(options)
    protocol = Protocol(
        name="bottlenecks",
        summary="Reconstruction of held-out clips.",
        task="reconstruction",
        metrics=METRICS,
        num_clips=min(options.num_clips, len(dataset)),
        batch_size=BATCH_SIZE,
    )
    return RealSet(title, protocol, dataset)


def validation_clips(options: argparse.Namespace) -> tuple[VideoDataset, str]:
    """The held-out clips and their name."""
    if options.data is None:
        return Sprites(options.num_clips, seed=1), "sprites"
    clip = ClipSpec(num_frames=NUM_FRAMES, size=SIZE, window="center")
    common: dict[str, Any] = {"clip": clip, "split": "val", "val_fraction": VAL_FRACTION}
    if options.data.is_dir():
        return VideoFolder(root=options.data, **common), options.data.name
    return VideoManifest(path=options.data, **common), options.data.stem


@torch.no_grad()
def lpips(
    tokenizers: dict[str, VideoTokenizer], real: RealSet, backbone: Path | None
) -> tuple[dict[str, float], list[str]]:
    """Mean LPIPS of each row's reconstructions, and a note if there are no weights."""
    try:
        metric = Lpips("squeeze", backbone=backbone).to(best_device())
    except UserError as error:
        return {}, [left_out("LPIPS", str(error))]
    found = {}
    for name, tokenizer in tokenizers.items():
        metric.reset()
        for video in batches(real):
            made = tokenizer.decode(tokenizer.encode(video))
            metric.update(to_uint8(made), to_uint8(video))
        found[name] = metric.compute().value
    return found, []


def batches(real: RealSet) -> Iterator[Tensor]:
    """The scored clips, float (B, 3, T, H, W)."""
    chosen, _ = real.protocol.choose(real.dataset)
    indices = [chosen[i : i + BATCH_SIZE] for i in range(0, len(chosen), BATCH_SIZE)]
    for clips in load_batches(real.dataset, indices):
        yield torch.stack([normalise(clip.video) for clip in clips]).to(best_device())


@torch.no_grad()
def gaussian_bits(tokenizer: VAE3D, real: RealSet) -> float:
    """Mean KL divergence of a token's posterior from the standard normal, in bits."""
    nats, num_tokens = 0.0, 0
    for video in batches(real):
        mean, log_variance = (x.double() for x in tokenizer.posterior(video))
        nats += float(0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum())
        num_tokens += mean[:, 0].numel()
    return nats / num_tokens / math.log(2)


def our_table(
    records: dict[str, ResultRecord],
    costs: dict[str, Cost],
    rates: dict[str, float],
    distances: dict[str, float],
    seconds: dict[str, float],
) -> list[str]:
    """One line per bottleneck."""
    names = {m.name: m.heading for record in records.values() for m in record.metrics}
    headings = (
        *("", "tokens", "bits / token", "bits / pixel", "ids in use", "perplexity"),
        *(f"{heading} ↑" for heading in names.values()),
        "LPIPS ↓",
        *("parameters", "encode (s)", "decode (s)", "training (s)"),
    )
    lines: list[list[Cell]] = []
    for name, record in records.items():
        found, values = costs[name], {m.name: m.value for m in record.metrics}
        pixels = (
            NUM_FRAMES / found.encode_frames_per_second,
            NUM_FRAMES / found.decode_frames_per_second,
        )
        share = found.codebook_share
        lines.append(
            [
                name,
                found.tokens,
                rates.get(name, found.bits_per_token),
                found.bits_per_pixel,
                None if share is None else f"{share:.1%}",
                found.codebook_perplexity,
                *(values.get(metric) for metric in names),
                distances.get(name),
                f"{found.parameters / 1e6:.3g}M",
                *pixels,
                seconds[name],
            ]
        )
    return table(headings, lines)


if __name__ == "__main__":
    main()
