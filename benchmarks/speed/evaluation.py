"""How fast features are extracted, and whether the network ever waits for frames.

The same clips of a folder of videos go through the same network twice: with workers that decode and resize the next
batches meanwhile, as arvid evaluates, and the usual way, one thing after another in one process. The weights are
random unless --weights names the published file; that does not change the time.

example:
  python benchmarks/speed/evaluation.py --data videos/ --num-clips 64
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arvid.contracts import UserError, VideoDataset
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder
from arvid.data.loading import load_batches
from arvid.evaluation.records import code_version
from arvid.hardware import hardware
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.fvd import fvd_features, seeded_fvd_features
from arvid.metrics.preprocessing import PREPROCESSINGS


class Timed(FeatureNetwork):
    """A feature network that adds up the seconds spent in it."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network
        self.name = network.name
        self.num_features = network.num_features
        self.seconds = 0.0

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        started = time.perf_counter()
        features = self.network(videos).cpu()  # waits for the device
        self.seconds += time.perf_counter() - started
        return features


@dataclass(frozen=True)
class Timing:
    """One way of doing the work."""

    seconds: float
    network_seconds: float
    peak_before: float
    """Memory in MB that this process had taken at most before it, and after it."""
    peak_after: float


def main() -> None:
    """Measure both ways and print them."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    network = build_network(options).to(options.device)
    dataset = load(options)
    network(torch.from_numpy(dataset[0].video)[None])  # warms up
    ways = {
        "overlapped": measure(dataset, network, options, options.num_workers),
        "one after another": measure(dataset, network, options, 0),
    }
    print(f"{network.name}, {options.num_clips} clips of {options.num_frames} frames, ", end="")
    print(f"batches of {options.batch_size}, {options.num_workers} workers, {options.device}")
    print(f"{hardware()}, arvid {code_version()}")
    print("| way | clips / s | share of time in the network | memory peak before, after (MB) |")
    print("| :-- | --: | --: | --: |")
    for name, way in ways.items():
        share = way.network_seconds / way.seconds
        memory = f"{way.peak_before:.0f}, {way.peak_after:.0f}"
        print(f"| {name} | {options.num_clips / way.seconds:.2f} | {share:.1%} | {memory} |")
    ratio = ways["one after another"].seconds / ways["overlapped"].seconds
    print(f"Overlapped is {ratio:.2f} times as fast.")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="videos: a folder for each class")
    parser.add_argument("--weights", type=Path, help="published I3D file (default: random weights)")
    parser.add_argument("--preprocessing", choices=sorted(PREPROCESSINGS), default="nbp")
    parser.add_argument("--num-clips", type=int, default=32)
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width of the clips")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of the network, on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def build_network(options: argparse.Namespace) -> FeatureNetwork:
    """With published weights if they are given, else with random ones."""
    if options.weights is None:
        return seeded_fvd_features(options.preprocessing)
    return fvd_features(options.preprocessing, weights=options.weights)


def load(options: argparse.Namespace) -> VideoDataset:
    """The folder, whose files are looked at here once. Raises UserError if it has too few clips."""
    spec = ClipSpec(num_frames=options.num_frames, size=options.size, window="center")
    dataset = VideoFolder(options.data, spec)
    if len(dataset) < options.num_clips:
        raise UserError(
            f"{options.data}: {options.num_clips} clips are needed, there are {len(dataset)}."
        )
    return dataset


def measure(
    dataset: VideoDataset, network: FeatureNetwork, options: argparse.Namespace, num_workers: int
) -> Timing:
    """Extract the features of the first clips."""
    timed = Timed(network)
    before = peak_memory()
    size = options.batch_size
    batches = [
        range(i, min(i + size, options.num_clips)) for i in range(0, options.num_clips, size)
    ]
    started = time.perf_counter()
    for clips in load_batches(dataset, batches, num_workers):
        timed(torch.from_numpy(np.stack([clip.video for clip in clips])))
    seconds = time.perf_counter() - started
    return Timing(seconds, timed.seconds, before, peak_memory())


def peak_memory() -> float:
    """Most memory that this process has taken so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
