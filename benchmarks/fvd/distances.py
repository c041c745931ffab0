"""Which distance sees what: candidates between real clips and corrupted real clips, on several data sets.

Clips are cut from a folder of videos and split into two halves without a common video. One is the real set. The other
is corrupted: noise, blur, JPEG compression, shuffled frames, frozen frames, reversed time, clips replaced by copies of
one clip, each with three severities. Reconstructions by tokenizers (--tokenizer) are a further kind: a useful distance
puts them between real clips and frozen, shuffled or noisy ones. The tables show how much a distance rises over the
uncorrupted half, in standard deviations of the distance between random halves of the real clips. A rise below 2 is not
seen at this number of clips.

candidates:
  fd-efficientnet             Fréchet distance: frames and their changes, seen by EfficientNet-Lite0
                              (arvid/metrics/efficientnet_features.py)
  efficientnet, frames only   the same without the changes
  efficientnet, kernel        kernel distance (KVD's) over the same features
  squeezenet                  Fréchet distance: frames and their changes, seen by SqueezeNet; with --squeezenet
  pixels                      Fréchet distance: mean colours of 4 x 8 x 8 cells

examples:
  python benchmarks/fvd/distances.py --data weizmann64 ucf101
  python benchmarks/fvd/distances.py --data videos/ --clips-per-video 4 --squeezenet squeezenet1_1-b8a52dc0.pth
  python benchmarks/fvd/distances.py --data weizmann64 --tokenizer weizmann64:vae3d=runs/vae3d/checkpoints/last.ckpt

Writes table.md, results.json, distances.png and distances.svg to --out. A CPU core takes about 10 ms per frame of
each corruption: eight minutes for 72 clips of 17 frames per half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from arvid.benchmarks.fvd.sensitivity import add_noise, blur, shuffle
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.collate import normalise, to_uint8
from arvid.data.folder import VideoFolder
from arvid.experiments.paper import script_parser, table, write_page
from arvid.files import sha256_file
from arvid.metrics.efficientnet_features import efficientnet_features, prepare, summarise
from arvid.metrics.frechet import FeatureNetwork, frechet_distance_from_features
from arvid.metrics.inference import in_chunks
from arvid.metrics.kernel_distance import kernel_video_distance
from arvid.metrics.pixel_features import PixelFeatures
from arvid.processes import best_device
from arvid.ranges import at_least
from arvid.report.panels import legend_below, write_figure
from arvid.training.export import load_tokenizer

Videos = UInt8[Tensor, "b t h w 3"]
Found = dict[str, Any]
Distance = Callable[[Tensor, Tensor], Tensor]
NUM_SPLITS = 20
"""Random halves of the real clips, for the standard deviation of their distance."""


def compress(videos: Videos, quality: float) -> Videos:
    """Each frame as a JPEG of this quality (100: best)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    frames = []
    for frame in videos.flip(-1).flatten(0, 1).numpy():  # OpenCV takes BGR
        decoded = cv2.imdecode(cv2.imencode(".jpg", frame, options)[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        frames.append(decoded)
    return torch.from_numpy(np.stack(frames)).flip(-1).view_as(videos)


def freeze(videos: Videos, share: float) -> Videos:
    """Repeat a frame for this share of the clip, to its end. 1: the first frame repeated."""
    start = round((1 - share) * (videos.shape[1] - 1))
    frozen = videos.clone()
    frozen[:, start:] = videos[:, start : start + 1]
    return frozen


def reverse(videos: Videos, share: float) -> Videos:
    """Reverse the time of this share of the clips."""
    num = round(share * len(videos))
    return torch.cat([videos[:num].flip(1), videos[num:]])


def collapse(videos: Videos, share: float) -> Videos:
    """Replace this share of the clips, the last ones, by copies of the first clip."""
    num = round(share * len(videos))
    return torch.cat([videos[: len(videos) - num], videos[:1].expand(num, -1, -1, -1, -1)])


CORRUPTIONS: dict[str, tuple[Callable[[Videos, float], Videos], tuple[float, ...], str]] = {
    "noise": (add_noise, (4, 8, 16), "levels"),
    "blur": (blur, (0.7, 1.4, 2.8), "pixels"),
    "JPEG": (compress, (60, 25, 10), "quality"),
    "shuffled": (shuffle, (0.25, 0.5, 1), "of the frames"),
    "frozen": (freeze, (0.25, 0.5, 1), "of the frames"),
    "reversed": (reverse, (0.25, 0.5, 1), "of the clips"),
    "one clip": (collapse, (0.125, 0.25, 0.5), "of the clips"),
}
"""Corruption -> function, amounts from mild to severe, unit of the amounts."""


class SqueezeFeatures(FeatureNetwork):
    """Like EfficientNetFeatures, over the last 512 channels of SqueezeNet 1.1."""

    name = "squeezenet-changes"
    num_features = 512 * 3

    def __init__(self, weights: Path) -> None:
        from torchvision.models import squeezenet1_1  # after arvid, see arvid/_torchvision.py

        super().__init__()
        is_safe = weights.suffix == ".safetensors"
        found = load_file(weights) if is_safe else torch.load(weights, weights_only=True)
        prefix = "features."
        self.layers: nn.Module = squeezenet1_1().features
        self.layers.load_state_dict(
            {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        )
        self.sha256 = sha256_file(weights)
        self.eval().requires_grad_(False)

    def forward(self, videos: Videos) -> Tensor:
        return in_chunks(self._clip_features, videos, torch.device("cpu"))

    def _clip_features(self, videos: Videos) -> Tensor:
        mean, std = (torch.tensor(x)[:, None, None] for x in IMAGENET)
        levels = prepare(videos) * 128 + 127
        maps = self.layers((levels / 255 - mean) / std)
        return summarise(maps.mean((2, 3)).unflatten(0, videos.shape[:2]))


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the colours that torchvision's networks were trained with."""


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    started = time.monotonic()
    by_data: dict[str, Found] = {}
    lines: list[str] = []
    for path in options.data:
        found = measure(path, options)
        by_data[path.name] = found
        lines += page(path.name, found)
    results = {
        "num_frames": options.num_frames,
        "size": options.size,
        "data": by_data,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    write_page(options.out, "What each distance sees", lines, NOTES, results)
    draw(options.out / "distances", by_data)


NOTES = (
    "Cells: rise of the distance over the uncorrupted other half, from mild to severe, in standard deviations of the "
    "distance between random halves of the real clips. Below 2 a corruption is not seen with this number of clips.",
    "A reconstruction is misplaced if it is not between real clips and the most severely frozen, shuffled and noisy "
    "ones.",
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/distances")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of videos")
    parser.add_argument("--clips-per-video", type=at_least(1).integer, default=2)
    parser.add_argument("--num-frames", type=at_least(4).integer, default=17)
    parser.add_argument("--size", type=at_least(16).integer, default=64)
    parser.add_argument("--squeezenet", type=Path, help="torchvision's weights of SqueezeNet 1.1")
    parser.add_argument(
        "--tokenizer",
        type=parse_tokenizer,
        action="append",
        default=[],
        metavar="DATA:NAME=FILE",
        help="also reconstruct the clips of the folder DATA with this tokenizer; may be repeated",
    )
    options = parser.parse_args()
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Raise UserError, before anything is measured, for names that are given twice and tokenizers that do not fit."""
    names = [path.name for path in options.data]
    pairs = [f"{data}:{name}" for data, name, _ in options.tokenizer]
    for option, given in (("--data", names), ("--tokenizer", pairs)):
        if twice := {name for name in given if given.count(name) > 1}:
            raise UserError(
                f"{option}: {min(twice)} is given twice, and results are listed by name."
            )
    for data, name, file in options.tokenizer:
        if data not in names:
            raise UserError(f"--tokenizer {data}:...: --data has no folder of this name.")
        tokenizer = load_tokenizer(file)
        try:
            tokenizer.check_grid(tokenizer.spec.grid(options.num_frames, *2 * [options.size]))
        except UserError as error:
            raise UserError(f"--tokenizer {data}:{name}: {error}") from error


def parse_tokenizer(text: str) -> tuple[str, str, str]:
    """`weizmann64:vae3d=FILE` as its three parts. Raises ArgumentTypeError for another form."""
    data, _, rest = text.partition(":")
    name, _, file = rest.partition("=")
    if not (data and name and file):
        raise argparse.ArgumentTypeError(
            f"give a folder, a name and a file as weizmann64:vae3d=FILE, not {text!r}"
        )
    return data, name, file


@torch.no_grad()
def reconstruct(videos: Videos, file: str) -> Videos:
    """Encode and decode each clip with the tokenizer of a checkpoint."""
    tokenizer = load_tokenizer(file).to(best_device())
    made = []
    for clip in videos:
        x = normalise(clip.numpy())[None].to(best_device())
        made.append(to_uint8(tokenizer.decode(tokenizer.encode(x)))[0].cpu())
    return torch.stack(made)


def measure(path: Path, options: argparse.Namespace) -> Found:
    """Distances of one data set by candidate."""
    per_video = options.clips_per_video
    real, other = halves(path, options)
    corrupted = [(corrupt, a) for corrupt, amounts, _ in CORRUPTIONS.values() for a in amounts]
    networks: dict[str, FeatureNetwork] = {
        "fd-efficientnet": efficientnet_features(),
        "pixels": PixelFeatures(),
    }
    if options.squeezenet:
        networks["squeezenet"] = SqueezeFeatures(options.squeezenet)
    features: dict[str, list[Tensor]] = {name: [] for name in networks}
    tokenizers = {name: file for data, name, file in options.tokenizer if data == path.name}
    sets = chain(
        (real, other),
        (corrupt(other, amount) for corrupt, amount in corrupted),
        (reconstruct(other, file) for file in tokenizers.values()),
    )
    total = 2 + len(corrupted) + len(tokenizers)
    for videos in tqdm(sets, desc=path.name, total=total, disable=None):
        for name, network in networks.items():
            features[name].append(network(videos))
    features["efficientnet, frames only"] = [x[:, :192] for x in features["fd-efficientnet"]]
    features["efficientnet, kernel"] = features["fd-efficientnet"]
    found = {
        name: candidate(
            features[name],
            kernel_video_distance if "kernel" in name else frechet,
            per_video,
            tuple(tokenizers),
        )
        for name in ORDER
        if name in features
    }
    return {"clips_per_half": len(real), "candidates": found}


ORDER = (
    "fd-efficientnet",
    "efficientnet, frames only",
    "efficientnet, kernel",
    "squeezenet",
    "pixels",
)


def frechet(a: Tensor, b: Tensor) -> Tensor:
    """Fréchet distance of two sets of features."""
    return frechet_distance_from_features(a, b)


def halves(path: Path, options: argparse.Namespace) -> tuple[Videos, Videos]:
    """Two sets of clips without a common video, chosen at random. Raises UserError for fewer than 4 videos."""
    spec = ClipSpec(num_frames=options.num_frames, size=options.size, window="random")
    dataset = VideoFolder(path, spec, clips_per_video=options.clips_per_video)
    num = len(dataset) // options.clips_per_video
    if num < 4:
        raise UserError(f"{path}: at least 4 videos are needed, but there are {num}.")
    order = np.random.default_rng(0).permutation(num)
    parts = []
    for videos in (order[: num // 2], order[num // 2 : num // 2 * 2]):
        indices = [
            int(v) * options.clips_per_video + i
            for v in videos
            for i in range(options.clips_per_video)
        ]
        parts.append(torch.stack([torch.from_numpy(dataset[i].video) for i in indices]))
    return parts[0], parts[1]


def candidate(
    features: list[Tensor], distance: Distance, per_video: int, tokenizers: tuple[str, ...] = ()
) -> Found:
    """The distances from the real half, their noise, and what they see.

    `features` are of the real half, the other half, and then the other half after each corruption and each
    reconstruction.
    """
    real, other, *corrupted = features
    floor = float(distance(real, other))
    noise = deviation(torch.cat([real, other]).unflatten(0, (-1, per_video)), distance)
    values = iter([float(distance(real, x)) for x in corrupted])
    distances = {n: [next(values) for _ in amounts] for n, (_, amounts, _) in CORRUPTIONS.items()}
    rises = {n: [(v - floor) / noise for v in found] for n, found in distances.items()}
    reconstructed = {n: (next(values) - floor) / noise for n in tokenizers}
    return {
        "real": floor,
        "noise": noise,
        "distances": distances,
        "rises": rises,
        "reconstructions": reconstructed,
        "misplaced_reconstructions": misplaced(reconstructed, rises),
        "not_monotone": [n for n, found in rises.items() if not grows(found)],
    }


def grows(rises: list[float]) -> bool:
    """Whether the distance grows from the uncorrupted clips on with the severity."""
    return all(later > earlier for earlier, later in pairwise([0.0, *rises]))


def misplaced(reconstructed: dict[str, float], rises: dict[str, list[float]]) -> list[str]:
    """Tokenizers whose reconstructions are not between real and frozen, shuffled and noisy clips."""
    worst = min(rises[name][-1] for name in WORSE_THAN_A_TOKENIZER)
    return [name for name, rise in reconstructed.items() if not 0 < rise < worst]


WORSE_THAN_A_TOKENIZER = ("frozen", "shuffled", "noise")
"""Corruptions that at their greatest severity are worse than the reconstruction of a trained tokenizer."""


def deviation(features: Tensor, distance: Distance) -> float:
    """Standard deviation of the distance between random halves of the videos; `features` (videos, clips, d)."""
    half, found = len(features) // 2, []
    for seed in range(NUM_SPLITS):
        order = np.random.default_rng(seed).permutation(len(features))
        parts = (features[order[:half]], features[order[half : 2 * half]])
        found.append(float(distance(*(part.flatten(0, 1) for part in parts))))
    return float(np.std(found, ddof=1))


def page(name: str, found: Found) -> list[str]:
    """Lines of the page for one data set."""
    tokenizers = list(next(iter(found["candidates"].values()))["reconstructions"])
    rows = [
        (
            candidate,
            *(" / ".join(f"{rise:.1f}" for rise in value["rises"][n]) for n in CORRUPTIONS),
            *(
                f"{rise:.1f}{' (misplaced)' * (n in value['misplaced_reconstructions'])}"
                for n, rise in value["reconstructions"].items()
            ),
            ", ".join(value["not_monotone"]) or "none",
        )
        for candidate, value in found["candidates"].items()
    ]
    amounts = "; ".join(
        f"{n} {' / '.join(f'{a:g}' for a in amounts)} {unit}"
        for n, (_, amounts, unit) in CORRUPTIONS.items()
    )
    return [
        f"## {name}",
        "",
        f"{found['clips_per_half']} clips per half. {amounts}.",
        "",
        *table(
            (
                "candidate",
                *CORRUPTIONS,
                *(f"reconstruction ({name})" for name in tokenizers),
                "does not grow with",
            ),
            rows,
        ),
        "",
    ]


def draw(path: Path, by_data: Mapping[str, Found]) -> None:
    """A panel for each data set."""
    draws = [panel(name, found, legend=i == 0) for i, (name, found) in enumerate(by_data.items())]
    write_figure(path, draws, columns=min(len(draws), 2))


def panel(name: str, found: Found, *, legend: bool) -> Callable[[Axes], None]:
    """A panel with the rise at the greatest severity and of the reconstructions, by candidate."""

    def draw(axis: Axes) -> None:
        shown = found["candidates"]
        tokenizers = list(next(iter(shown.values()))["reconstructions"])
        width = 0.8 / len(shown)
        for i, (candidate, value) in enumerate(shown.items()):
            rises = [value["rises"][n][-1] for n in CORRUPTIONS]
            rises += [value["reconstructions"][n] for n in tokenizers]
            heights = np.maximum(rises, LEAST)
            places = np.arange(len(heights)) + (i - (len(shown) - 1) / 2) * width
            axis.bar(places, heights, width, label=candidate, color=COLOURS[candidate])
        axis.axhline(2, color="#444444", lw=1, ls="--", label="seen above this line")
        groups = [*CORRUPTIONS, *tokenizers]
        axis.set_xticks(range(len(groups)), groups, rotation=35, ha="right")
        axis.set(yscale="log", ylim=(LEAST, None), ylabel="rise (standard deviations)", title=name)
        axis.set_yticks(TICKS, [str(tick) for tick in TICKS])
        axis.yaxis.set_minor_locator(NullLocator())
        if legend:
            legend_below(axis)

    return draw


TICKS = (1, 2, 5, 10, 20, 50, 100)
LEAST = 0.5
"""Lower end of the picture's logarithmic axis."""
COLOURS = dict(zip(ORDER, ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#999999"), strict=True))


if __name__ == "__main__":
    main()
