"""Sensitivity of FVD: distance between real clips and corrupted real clips, with increasing corruption.

Clips are cut from a folder of videos and split into two disjoint halves. One is the real set. The other replaces the
generated set: unchanged (lower bound at this number of clips), with noise, with blur, with shuffled frames. The
distance must lie above the lower bound and grow with the corruption. I3D has random weights unless --weights gives the
published file. Then the values are not FVD, but the whole computation from file to value is checked.

examples:
  python benchmarks/fvd/sensitivity.py --data videos/
  python benchmarks/fvd/sensitivity.py --data videos/ --weights i3d_pretrained_400.pt --num-clips 256

Writes table.md and results.json to --out. Takes 11 passes over the clips of a half, on a CPU some seconds per clip.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from arvid.contracts import UserError, VideoDataset
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder
from arvid.experiments.paper import script_parser, table, write_page
from arvid.metrics.frechet import FeatureNetwork, frechet_distance_from_features
from arvid.metrics.fvd import fvd_features, seeded_fvd_features
from arvid.metrics.preprocessing import PREPROCESSINGS
from arvid.ranges import at_least

Videos = UInt8[Tensor, "b t h w 3"]
BATCH_SIZE = 4

Row = dict[str, Any]


def add_noise(videos: Videos, deviation: float) -> Videos:
    """Add Gaussian noise with a standard deviation in levels, different in every frame."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(videos.shape, generator=generator) * deviation
    return (videos + noise).round().clamp(0, 255).to(torch.uint8)


def blur(videos: Videos, sigma: float) -> Videos:
    """Gaussian blur with a standard deviation in pixels, the same in every frame."""
    frames = [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in videos.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(frames)).view_as(videos)


def shuffle(videos: Videos, share: float) -> Videos:
    """Permute a share of the frames of each clip."""
    generator = torch.Generator().manual_seed(0)
    shuffled = videos.clone()
    for clip in shuffled:
        num_moved = max(2, round(share * len(clip)))
        moved = torch.randperm(len(clip), generator=generator)[:num_moved]
        clip[moved] = clip[moved.roll(1)]  # a cyclic shift moves every chosen frame
    return shuffled


SPOILERS: dict[str, tuple[Callable[[Videos, float], Videos], tuple[float, ...], str]] = {
    "noise": (add_noise, (8, 16, 32), "levels"),
    "blur": (blur, (1, 2, 4), "pixels"),
    "shuffled frames": (shuffle, (0.25, 0.5, 1), "of the frames"),
}
"""Corruption -> function, ascending amounts, unit of the amounts."""


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    started = time.monotonic()
    network = build_network(options)
    real, other = halves(options)
    features = features_of(network, real)
    floor = distance(features, features_of(network, other))
    rows: list[Row] = [
        {"spoilt by": "nothing (the floor)", "amount": None, "unit": "", "distance": floor}
    ]
    todo = [(n, f, a, u) for n, (f, amounts, u) in SPOILERS.items() for a in amounts]
    for name, spoil, amount, unit in tqdm(todo, desc="spoiling", disable=None):
        value = distance(features, features_of(network, spoil(other, amount)))
        rows.append({"spoilt by": name, "amount": amount, "unit": unit, "distance": value})
    result = {
        "feature_network": network.name,
        "feature_sha256": network.sha256,
        "clips_per_half": options.num_clips,
        "clip": [options.num_frames, options.size, options.size],
        "ddof": 1,
        "rows": rows,
        "monotone": is_monotone(rows),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    write_page(options.out, "FVD against spoilt clips", page(result), (), result)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/fvd-sensitivity")
    parser.add_argument("--data", type=Path, required=True, help="videos: a folder for each class")
    parser.add_argument("--weights", type=Path, help="published I3D file (default: random weights)")
    parser.add_argument("--preprocessing", choices=sorted(PREPROCESSINGS), default="tats")
    parser.add_argument(
        "--num-clips", type=at_least(2).integer, default=16, help="clips of each half"
    )
    parser.add_argument("--num-frames", type=at_least(1).integer, default=16)
    parser.add_argument(
        "--size", type=at_least(1).integer, default=64, help="height and width of the clips"
    )
    return parser.parse_args()


def build_network(options: argparse.Namespace) -> FeatureNetwork:
    """I3D with the published weights if they are given, else with random weights."""
    if options.weights is None:
        return seeded_fvd_features(options.preprocessing)
    return fvd_features(options.preprocessing, weights=options.weights)


def halves(options: argparse.Namespace) -> tuple[Videos, Videos]:
    """Two disjoint sets of clips from different videos, chosen at random.

    Raises UserError if there are too few videos.
    """
    spec = ClipSpec(num_frames=options.num_frames, size=options.size, window="center")
    dataset: VideoDataset = VideoFolder(options.data, spec)
    needed = 2 * options.num_clips
    if len(dataset) < needed:
        raise UserError(
            f"{options.data}: {needed} clips are needed, but there are {len(dataset)}. Use fewer --num-clips."
        )
    chosen = np.random.default_rng(0).permutation(len(dataset))[:needed]
    videos = torch.stack([torch.from_numpy(dataset[int(i)].video) for i in chosen])
    return videos[: options.num_clips], videos[options.num_clips :]


def features_of(network: FeatureNetwork, videos: Videos) -> Tensor:
    """Features (N, d), computed in batches."""
    return torch.cat([network(batch) for batch in videos.split(BATCH_SIZE)])


def distance(real: Tensor, other: Tensor) -> float:
    """Fréchet distance of two sets of features."""
    return float(frechet_distance_from_features(real, other))


def is_monotone(rows: list[Row]) -> bool:
    """Whether the distance grows with the amount of every corruption, starting from the lower bound."""
    floor = rows[0]["distance"]
    for name in SPOILERS:
        values = [floor, *(row["distance"] for row in rows if row["spoilt by"] == name)]
        if any(later <= earlier for earlier, later in pairwise(values)):
            return False
    return True


def page(result: dict[str, Any]) -> list[str]:
    """Lines of the page: the protocol and the table."""
    amounts = (
        "" if row["amount"] is None else f"{row['amount']:g} {row['unit']}"
        for row in result["rows"]
    )
    rows = [
        (row["spoilt by"], amount, f"{row['distance']:.2f}")
        for row, amount in zip(result["rows"], amounts, strict=True)
    ]
    return [
        f"Feature network {result['feature_network']}, two disjoint halves of {result['clips_per_half']} real "
        f"clips, {result['clip']} (frames, height, width), ddof {result['ddof']}. "
        f"Monotone: {'yes' if result['monotone'] else 'NO'}.",
        "",
        *table(("spoilt by", "how much", "distance"), rows),
    ]


if __name__ == "__main__":
    main()
