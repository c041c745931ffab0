"""Time and memory of FVD, from mp4 files to the value, against the number of clips.

Three programs process the same files, each in its own process:

  arvid             `arvid evaluate VIDEOS` of a first row: both sets, distance, standard deviation, interval, record
  arvid, next row   the same for another row of this protocol; the real clips are already measured
  cd-fvd            its class (`pip install cd-fvd`) with clips in batches (its own loader needs an old torchvision that
                    decodes videos)
  common_metrics    common_metrics_on_video_quality, method videogpt, from the checkout given by --common-metrics, with
                    one tensor of all clips per set, as it requires

All use the same I3D. Its weights are random unless --weights gives the published file i3d_pretrained_400.pt. Random
weights do not change the time, but the distances are not FVD. The time includes decoding, resizing, the network and the
distance. The memory is the peak of a process with its workers. Last, the bootstrap alone is compared, in time and
values, with a factorisation per resample.

examples:
  python benchmarks/speed/evaluation.py
  python benchmarks/speed/evaluation.py --num-clips 64 128 256 --common-metrics common_metrics_on_video_quality

Writes table.md and results.json to --out. Takes about ten minutes on two cores. Linux only (memory from /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.video import read_video, write_video
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import real_clips, videos_in
from arvid.evaluation.rows import evaluate_videos
from arvid.evaluation.scores.distances import Fvd
from arvid.experiments.paper import Cell, script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.metrics.bootstrap import INTERVAL_DRAWS, STD_DRAWS, bootstrap_distances
from arvid.metrics.frechet import frechet_distance_from_features
from arvid.metrics.fvd import I3DFeatures
from arvid.metrics.i3d import load_i3d, seeded_i3d
from arvid.metrics.preprocessing import PREPROCESSINGS
from arvid.processes import best_device
from arvid.ranges import at_least

Result = dict[str, Any]

BATCH_SIZE = 16
"""Batch size where a program has one; cd-fvd's default."""
SAMPLE_SECONDS = 0.2
"""Seconds between two memory measurements."""
BOOTSTRAPS = ((2048, 400), (256, 400), (256, 64))
"""Numbers of clips per set and of features."""
REFERENCE_DRAWS = 10
"""Number of timed resamples of the reference bootstrap. The time for all resamples is extrapolated."""


def main() -> None:
    """Run every case in a process of its own, print, write."""
    options = parse_arguments()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        todo = jobs(options, Path(folder))
        results = [in_process(job) for job in tqdm(todo, "cases", disable=None)]
    report = {
        "programs": results,
        "bootstrap": [bootstrap_case(*case) for case in options.bootstrap],
        "device": str(best_device()),
        "torch": torch.__version__,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    weights = "published" if options.weights else "random, so the distances are no FVD"
    notes = [
        cpu_summary(),
        f"Clips of {options.num_frames} frames of {options.size}x{options.size} pixels; weights of the I3D: {weights}.",
    ]
    write_page(options.out, "FVD from mp4 files: speed and memory", page(report), notes, report)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/evaluation-speed")
    parser.add_argument(
        "--num-clips",
        type=at_least(2).integer,
        nargs="+",
        default=[8, 16, 32],
        help="of each set; one case each",
    )
    parser.add_argument("--num-frames", type=at_least(1).integer, default=16)
    parser.add_argument(
        "--size", type=at_least(1).integer, default=64, help="height and width of the clips"
    )
    parser.add_argument("--weights", type=Path, help="published I3D file (default: random weights)")
    parser.add_argument(
        "--common-metrics", type=Path, help="checkout of common_metrics_on_video_quality"
    )
    parser.add_argument(
        "--bootstrap",
        type=lambda text: tuple(int(n) for n in text.split("x")),
        nargs="*",
        default=BOOTSTRAPS,
        help="CLIPSxFEATURES of each case",
    )
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


# Cases


def jobs(options: argparse.Namespace, folder: Path) -> list[Result]:
    """A case for each program and number of clips, with its files written."""
    weights = options.weights or folder / "i3d_pretrained_400.pt"
    if options.weights is None:
        torch.save(seeded_i3d().state_dict(), weights)
    found = []
    for num in options.num_clips:
        sets = {name: folder / str(num) / name for name in ("real", "generated")}
        for seed, path in enumerate(sets.values()):
            write_clips(path, num, seed, options)
        case = {
            **{name: str(path) for name, path in sets.items()},
            "num_clips": num,
            "num_frames": options.num_frames,
            "size": options.size,
            "weights": str(weights),
            "cache": str(folder / str(num) / "cache"),
            "common_metrics": options.common_metrics and str(options.common_metrics),
        }
        found += [{"program": name, **case} for name in PROGRAMS]
    return found


def write_clips(folder: Path, num: int, seed: int, options: argparse.Namespace) -> None:
    """`num` clips of sprites as mp4 files."""
    clips = Sprites(num, seed=seed, num_frames=options.num_frames, size=options.size)
    for i in range(num):
        write_video(folder / f"{i:05d}.mp4", clips[i].video, 8.0)


def in_process(job: Result) -> Result:
    """A case in a process and with a cache of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "ARVID_CACHE": job["cache"]},
    )
    told = {key: job[key] for key in ("program", "num_clips", "num_frames", "size")}
    return {**told, **json.loads(done.stdout.splitlines()[-1])}


def run_job(job: Result) -> Result:
    """Seconds, memory and values of a case; `missing` says why there are none."""
    try:
        work = PROGRAMS[job["program"]](job)
    except ImportError as error:
        return {"missing": str(error)}
    before, started = cpu_seconds(), time.perf_counter()
    with watched_memory() as memory:
        values = work()
    seconds = time.perf_counter() - started
    return {
        "values": values,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - before,
        "peak_mb": max(memory),
    }


# Programs: each gets ready and returns the work, which gives the distance by ddof


def of_arvid(job: Result) -> Callable[[], dict[str, float]]:
    """`arvid evaluate`, with the preprocessing of cd-fvd."""
    variant = PREPROCESSINGS["cd-fvd"]
    i3d = load_i3d(job["weights"], bn_eps=variant.bn_eps)
    network = I3DFeatures(i3d, variant, name="i3d")

    def build(preprocessing: str, *, weights: str | Path | None = None) -> I3DFeatures:
        return network

    Fvd.build = build  # else it asks for the published weights
    protocol = Protocol(
        name="speed",
        summary="",
        task="generation",
        metrics=("fvd",),
        num_clips=job["num_clips"],
        clip=ClipSpec(num_frames=job["num_frames"], size=job["size"]),
        preprocessing=variant.name,
        ddof=variant.ddof,
        batch_size=BATCH_SIZE,
    )
    out = Path(job["cache"], job["program"])

    def work() -> dict[str, float]:
        real = real_clips(protocol, Path(job["real"]))
        evaluate_videos(Path(job["generated"]), protocol, real, out=out, name=job["program"])
        kept = load_file(out / "evaluation/speed/measured-0.safetensors")
        sets = kept["fvd.real"], kept["fvd.generated"]
        return {str(n): float(frechet_distance_from_features(*sets, ddof=n)) for n in (0, 1)}

    return work


def of_cd_fvd(job: Result) -> Callable[[], dict[str, float]]:
    """Its class, given the clips batch by batch."""
    from cdfvd import fvd

    metric = fvd.cdfvd("i3d", n_fake="full", ckpt_path=job["weights"], device=str(best_device()))

    def work() -> dict[str, float]:
        for name, add in (("real", metric.add_real_stats), ("generated", metric.add_fake_stats)):
            paths = videos_in(Path(job[name]))
            for i in range(0, len(paths), BATCH_SIZE):
                add(read_all(paths[i : i + BATCH_SIZE]))
        return {"0": float(metric.compute_fvd_from_stats())}

    return work


def of_common_metrics(job: Result) -> Callable[[], dict[str, float]]:
    """Its function over two tensors of all clips; the weights are put in the place of its download."""
    if job["common_metrics"] is None:
        raise ImportError("--common-metrics names no checkout")
    sys.path.insert(0, job["common_metrics"])
    from calculate_fvd import calculate_fvd  # type: ignore[import-not-found]
    from fvd.videogpt import fvd, pytorch_i3d  # type: ignore[import-not-found]

    network = pytorch_i3d.InceptionI3d(400, in_channels=3).eval().to(best_device())
    network.load_state_dict(
        torch.load(job["weights"], map_location=best_device(), weights_only=True)
    )
    fvd.load_i3d_pretrained = lambda device: network

    def work() -> dict[str, float]:
        sets = [unit_videos(Path(job[name])) for name in ("real", "generated")]
        found = calculate_fvd(*sets, device=best_device(), method="videogpt", only_final=True)
        return {"1": float(found["value"][0])}

    return work


def read_all(paths: Sequence[Path]) -> UInt8[np.ndarray, "n t h w 3"]:
    """Videos, one after another."""
    return np.stack([read_video(path).frames for path in paths])


def unit_videos(folder: Path) -> Float[Tensor, "n t 3 h w"]:
    """All videos of a folder in [0, 1]."""
    videos = torch.from_numpy(read_all(videos_in(folder)))
    return videos.permute(0, 1, 4, 2, 3).float() / 255


PROGRAMS: Mapping[str, Callable[[Result], Callable[[], dict[str, float]]]] = {
    "arvid": of_arvid,
    "arvid, next row": of_arvid,
    "cd-fvd": of_cd_fvd,
    "common_metrics": of_common_metrics,
}


# The bootstrap


def bootstrap_case(num_clips: int, num_features: int) -> Result:
    """CPU seconds of a row's standard deviation and interval: with a factorisation per resample, and as in arvid."""
    a, b = (features(num_clips, num_features, seed) for seed in (0, 1))
    started = time.process_time()
    expected = one_after_another(a, b, REFERENCE_DRAWS)
    each = (time.process_time() - started) / REFERENCE_DRAWS
    started = time.process_time()
    found = bootstrap_distances(a, b, num=INTERVAL_DRAWS)
    return {
        "clips": num_clips,
        "features": num_features,
        "reference_seconds": each * (INTERVAL_DRAWS + STD_DRAWS),
        "seconds": time.process_time() - started,
        "relative_difference": float((found[:REFERENCE_DRAWS] / expected - 1).abs().max()),
    }


def features(num: int, dim: int, seed: int) -> Float[Tensor, "n d"]:
    """Features whose deviations span two decades."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator) * torch.logspace(0, -2, dim) + 0.1 * seed


def one_after_another(a: Tensor, b: Tensor, num: int) -> Float[Tensor, " num"]:
    """Distances of the resamples, each computed from its clips directly."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(num):
        i, j = (torch.randint(len(x), (len(x),), generator=generator) for x in (a, b))
        found.append(frechet_distance_from_features(a[i], b[j]))
    return torch.stack(found)


# Time and memory


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Memory in MB of this process and its workers together, pages that they share counted once, from time to time."""
    found = [tree_memory(os.getpid())]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found.append(tree_memory(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def tree_memory(pid: int) -> float:
    """Proportional set size of a process and of all below it, in MB; 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for t in threads for c in (t / "children").read_text().split()]
    except OSError:
        return 0.0
    own = next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("Pss:"))
    return own + sum(map(tree_memory, children))


# The report


def page(report: Result) -> list[str]:
    """Lines below the title."""
    cases = report["programs"]
    arvids = {c["num_clips"]: c["values"] for c in cases if c["program"] == "arvid"}
    headings = (
        "program",
        "clips of each set",
        "seconds",
        "CPU seconds",
        "clips / CPU s",
        "memory peak (MB)",
        "distance",
        "arvid's, same ddof",
    )
    boot = (
        "clips of each set",
        "features",
        f"{INTERVAL_DRAWS + STD_DRAWS} draws, one by one (CPU s)",
        f"{INTERVAL_DRAWS} draws, arvid (CPU s)",
        "times as fast",
        "largest relative difference",
    )
    return [
        f"On {report['device']}, torch {report['torch']}.",
        "",
        "## From files to the number",
        "",
        "arvid's time holds the spread and the interval, which the others do not give. With fewer clips than the 400 "
        "features the covariances are singular, where the others' square roots lose digits. On one thread, seconds "
        "above the CPU seconds are those of other work on the same core: then CPU seconds compare, and both product "
        "rates above are low.",
        "",
        *table(headings, [program_row(case, arvids[case["num_clips"]]) for case in cases]),
        "",
        "## Spread and interval of a row",
        "",
        *table(boot, [bootstrap_row(case) for case in report["bootstrap"]]),
    ]


def program_row(case: Result, arvids: Mapping[str, float]) -> list[Cell]:
    """The cells of a case."""
    if "missing" in case:
        return [case["program"], str(case["num_clips"]), "not installed", *[None] * 5]
    ((ddof, value), *_) = case["values"].items()
    return [
        case["program"],
        str(case["num_clips"]),
        f"{case['seconds']:.1f}",
        f"{case['cpu_seconds']:.1f}",
        f"{2 * case['num_clips'] / case['cpu_seconds']:.2f}",
        f"{case['peak_mb']:.0f}",
        f"{value:.6g}",
        f"{arvids[ddof]:.6g}",
    ]


def bootstrap_row(case: Result) -> list[Cell]:
    """The cells of a case."""
    return [
        str(case["clips"]),
        str(case["features"]),
        f"{case['reference_seconds']:.3g}",
        f"{case['seconds']:.3g}",
        f"{case['reference_seconds'] / case['seconds']:.2f}",
        f"{case['relative_difference']:.1g}",
    ]


if __name__ == "__main__":
    main()
