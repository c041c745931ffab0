"""Speed and memory of reading clips: random clips with several readers; long, large and many files with arvid.

Each reader reads random clips of 17 frames at 128x128 pixels, in its own process on one core:

  arvid        `read_frames`, after the files were probed
  torchcodec   `VideoDecoder` with its Resize, in both seek modes
  decord       `VideoReader` with this size
  OpenCV       `VideoCapture`, set to the first frame, and `resize`

Each clip is compared with a full decode in decoding order. Resizing differs by a level or two between readers, so a
clip counts as wrong from a mean difference of 5 levels. Only for arvid: 17 frames at several minutes of a one-hour
file, a clip of 49 frames in 4K, and a folder of 10,000 small files on the first and on a later start.

examples:
  python benchmarks/speed/data.py --data ucf101_mini
  python benchmarks/speed/data.py --data ucf101_mini --python other/venv/bin/python --only clips

--python names an interpreter with the other readers, if this one lacks them (torchcodec needs matching versions of
torch and FFmpeg). Writes table.md and results.json to --out. Takes some minutes on two cores. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from arvid.data.clips import ClipSpec, resize_frames
from arvid.data.folder import VideoFolder
from arvid.data.video import probe_video, read_frames, read_video, write_video
from arvid.experiments.paper import Cell, script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.ranges import at_least

Result = dict[str, Any]
Clip = tuple[str, int]
"""Path and first frame."""
Frames = NDArray[np.uint8]

NUM_FRAMES, SIZE = 17, 128
OTHER = 5.0
"""Mean difference in levels from which a clip counts as wrong."""
MINUTES = (0, 5, 10, 60)
PARTS = ("clips", "long", "large", "many")


def main() -> None:
    """Run the parts, print, write."""
    options = parse_arguments()
    if options.job:
        print(json.dumps(JOBS[options.job["kind"]](options.job)))
        return
    started = time.monotonic()
    report: Result = {"wall_seconds": 0.0}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for part in options.only:
            report[part] = RUNS[part](options, Path(folder))
    report["wall_seconds"] = round(time.monotonic() - started, 1)
    write_page(
        options.out, "Reading clips: speed and memory", page(report), [cpu_summary()], report
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/data-speed")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of videos, or of folders of them"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--clips-per-file", type=at_least(1).integer, default=8)
    parser.add_argument(
        "--num-files", type=at_least(1).integer, default=10_000, help="of the folder of small files"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter with the other readers"
    )
    parser.add_argument(
        "--scratch", type=Path, help="where files are made (default: the system's place)"
    )
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(job: Result, python: str = sys.executable) -> Result:
    """What a job gives in a process and with a cache of its own; `missing` says why it gave nothing."""
    command = [python, __file__, "--data", ".", "--job", json.dumps(job)]
    environment = {**os.environ, "ARVID_CACHE": job["cache"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_mb() -> float:
    """Peak memory of this process so far. (getrusage includes the peak of the parent process.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


# Random clips beside other readers


def run_clips(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Each reader over the same clips."""
    paths = sorted(p for p in options.data.rglob("*") if p.suffix in (".avi", ".mp4"))
    rng = np.random.default_rng(0)
    lengths = {path: probe_video(path).num_frames for path in paths}
    clips = [
        (str(path), int(rng.integers(lengths[path] - NUM_FRAMES)))
        for path in paths * options.clips_per_file
        if lengths[path] > NUM_FRAMES
    ]
    reference = folder / "reference.npy"
    np.save(reference, full_decode(clips))
    job = {
        "kind": "read",
        "clips": clips,
        "reference": str(reference),
        "cache": str(folder / "cache"),
    }
    found = [
        {
            "reader": name,
            **in_process(
                {**job, "reader": name}, sys.executable if name == "arvid" else options.python
            ),
        }
        for name in READERS
    ]
    return [{"num_clips": len(clips), **result} for result in found]


def full_decode(clips: Sequence[Clip]) -> NDArray[np.uint8]:
    """The clips (N, T, H, W, 3) cut from whole videos, decoded from their first frames."""
    by_path: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(clips):
        by_path.setdefault(path, []).append(i)
    found = np.empty((len(clips), NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    for path, numbers in by_path.items():
        frames = resize_frames(read_video(path).frames, SIZE, "squash")
        for i in numbers:
            found[i] = frames[clips[i][1] :][:NUM_FRAMES]
    return found


def read_job(job: Result) -> Result:
    """CPU seconds of one reader for the clips, and the number of wrong clips."""
    cv2.setNumThreads(1)
    read = READERS[job["reader"]]([path for path, _ in job["clips"]])
    reference = np.load(job["reference"], mmap_mode="r")
    others = []
    for (path, start), meant in zip(job["clips"], reference, strict=True):
        difference = np.abs(read(path, start).astype(np.int16) - meant).mean((1, 2, 3))
        others.append(bool(difference.max() > OTHER))
    before = time.process_time()
    for path, start in job["clips"]:
        read(path, start)
    return {"cpu_seconds": time.process_time() - before, "others": sum(others)}


Read = Callable[[str, int], Any]


def arvid_reader(paths: Sequence[str]) -> Read:
    """arvid's, which has looked at the files beforehand."""
    probes = {path: probe_video(path) for path in dict.fromkeys(paths)}
    size = (SIZE, SIZE)

    def read(path: str, start: int) -> Frames:
        indices = range(start, start + NUM_FRAMES)
        return read_frames(path, indices, probe=probes[path], size=size, resize="squash")

    return read


def torchcodec_reader(seek_mode: str) -> Callable[[Sequence[str]], Read]:
    """torchcodec's, in one of its modes of seeking."""

    def build(paths: Sequence[str]) -> Read:
        import torch
        from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]
        from torchcodec.transforms import Resize  # type: ignore[import-not-found]

        torch.set_num_threads(1)

        def read(path: str, start: int) -> Frames:
            decoder = VideoDecoder(
                path,
                transforms=[Resize((SIZE, SIZE))],
                seek_mode=seek_mode,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
            )
            frames: Frames = decoder.get_frames_in_range(start, start + NUM_FRAMES).data.numpy()
            return frames

        return read

    return build


def decord_reader(paths: Sequence[str]) -> Read:
    """decord's."""
    import decord  # type: ignore[import-not-found]

    def read(path: str, start: int) -> Frames:
        reader = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
        frames: Frames = reader.get_batch(range(start, start + NUM_FRAMES)).asnumpy()
        return frames

    return read


def opencv_reader(paths: Sequence[str]) -> Read:
    """OpenCV's."""

    def read(path: str, start: int) -> Frames:
        video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        video.set(cv2.CAP_PROP_POS_FRAMES, start)
        frames = [video.read()[1] for _ in range(NUM_FRAMES)]
        small = [cv2.resize(f, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for f in frames]
        return np.stack(small)[..., ::-1].astype(np.uint8)

    return read


READERS: Mapping[str, Callable[[Sequence[str]], Read]] = {
    "arvid": arvid_reader,
    "torchcodec, exact": torchcodec_reader("exact"),
    "torchcodec, approximate": torchcodec_reader("approximate"),
    "decord": decord_reader,
    "OpenCV": opencv_reader,
}


# Long, large and many files


def run_long(options: argparse.Namespace, folder: Path) -> list[Result]:
    """17 frames at some minutes of a file of an hour."""
    path = folder / "long.mp4"
    write_long(path, minutes=max(MINUTES) + 1)
    started = time.process_time()
    probe = probe_video(path)
    seen = time.process_time() - started
    found = []
    for minute in MINUTES:
        first = round(minute * 60 * probe.fps)
        indices = range(first, first + NUM_FRAMES)
        before = time.process_time()
        clip = read_frames(path, indices, probe=probe, size=(SIZE, SIZE))
        seconds = time.process_time() - before
        before = time.process_time()
        plain = read_frames(path, indices, size=(SIZE, SIZE))
        from_start = time.process_time() - before
        found.append(
            {
                "minute": minute,
                "cpu_seconds": seconds,
                "from_start": from_start,
                "equal": bool((clip == plain).all()),
                "look": seen,
                "megabytes": path.stat().st_size / 2**20,
            }
        )
    return found


def write_long(path: Path, *, minutes: int) -> None:
    """A long file, 320x240 pixels at 25 fps: one minute, repeated."""
    minute = path.with_name("minute.mp4")
    still = np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)
    picture = np.kron(still, np.ones((16, 16, 1), np.uint8))
    write_video(minute, np.stack([np.roll(picture, 2 * i, axis=1) for i in range(60 * 25)]), 25)
    with av.open(str(path), "w") as target:
        stream = None
        for number in range(minutes):
            with av.open(str(minute)) as source:
                given = source.streams.video[0]
                stream = stream or target.add_stream_from_template(given)
                step = round(60 / float(given.time_base or 1))
                for packet in source.demux(given):
                    if packet.size:
                        packet.pts = (packet.pts or 0) + number * step
                        packet.dts = (packet.dts or 0) + number * step
                        packet.stream = stream
                        target.mux(packet)


def run_large(options: argparse.Namespace, folder: Path) -> list[Result]:
    """A clip of 49 frames of 4K."""
    picture = np.random.default_rng(0).integers(0, 255, (135, 240, 3), np.uint8)
    picture = np.kron(picture, np.ones((16, 16, 1), np.uint8))
    path = folder / "large" / "a" / "large.mp4"
    write_video(path, np.stack([np.roll(picture, 4 * i, axis=1) for i in range(49)]), 25)
    del picture
    job = {"kind": "large", "folder": str(folder / "large"), "cache": str(folder / "cache")}
    return [in_process(job)]


def large_job(job: Result) -> Result:
    """Memory before and after a clip is read."""
    before = peak_mb()
    dataset = VideoFolder(job["folder"], ClipSpec(num_frames=49, size=256))
    started = time.process_time()
    shape = dataset[0].video.shape
    seconds = time.process_time() - started
    return {"shape": shape, "cpu_seconds": seconds, "before_mb": before, "peak_mb": peak_mb()}


def run_many(options: argparse.Namespace, folder: Path) -> list[Result]:
    """A folder of many small files, on the first and on a later start."""
    (folder / "many" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = folder / "small.mp4"
    for number in range(options.num_files):
        if number % 100 == 0:
            write_video(first, rng.integers(0, 255, (NUM_FRAMES, 32, 32, 3), np.uint8), 8)
        shutil.copy(first, folder / "many" / "a" / f"{number:05d}.mp4")
    job = {"kind": "many", "folder": str(folder / "many"), "cache": str(folder / "many-cache")}
    return [{"seen": seen, **in_process(job)} for seen in ("first", "again")]


def many_job(job: Result) -> Result:
    """Seconds until the dataset and its fingerprint are there."""
    started, before = time.perf_counter(), time.process_time()
    dataset = VideoFolder(job["folder"], ClipSpec(size=32))
    dataset.fingerprint()
    return {
        "files": len(dataset),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - before,
        "peak_mb": peak_mb(),
    }


RUNS: Mapping[str, Callable[[argparse.Namespace, Path], list[Result]]] = {
    "clips": run_clips,
    "long": run_long,
    "large": run_large,
    "many": run_many,
}
JOBS: Mapping[str, Callable[[Result], Result]] = {
    "read": read_job,
    "large": large_job,
    "many": many_job,
}


# The report


def page(report: Result) -> list[str]:
    """Lines below the title."""
    lines = []
    for part, (title, headings, row) in TABLES.items():
        if part in report:
            rows = [row(result, report[part]) for result in report[part]]
            lines += [f"## {title}", "", *table(headings, rows), ""]
    return lines


def clip_row(result: Result, others: Sequence[Result]) -> list[Cell]:
    """The cells of a reader."""
    if "missing" in result:
        return [result["reader"], f"not run: {result['missing']}", None, None]
    rate = result["num_clips"] / result["cpu_seconds"]
    own = next(r for r in others if r["reader"] == "arvid")
    ratio = rate * own["cpu_seconds"] / own["num_clips"]
    return [
        result["reader"],
        f"{rate:.0f}",
        f"{ratio:.2f}",
        f"{result['others']} of {result['num_clips']}",
    ]


def long_row(result: Result, others: Sequence[Result]) -> list[Cell]:
    """The cells of a minute."""
    return [
        f"minute {result['minute']}",
        f"{result['cpu_seconds']:.3f}",
        f"{result['from_start']:.3f}",
        "yes" if result["equal"] else "no",
    ]


def large_row(result: Result, others: Sequence[Result]) -> list[Cell]:
    """The cells of the large clip."""
    return [
        "x".join(map(str, result["shape"])),
        *(f"{result[k]:.0f}" for k in ("before_mb", "peak_mb")),
    ]


def many_row(result: Result, others: Sequence[Result]) -> list[Cell]:
    """The cells of a start."""
    keys = ("seconds", "cpu_seconds", "peak_mb")
    return [f"{result['files']} files, {result['seen']}", *(f"{result[key]:.1f}" for key in keys)]


Row = Callable[[Result, Sequence[Result]], list[Cell]]
TABLES: Mapping[str, tuple[str, tuple[str, ...], Row]] = {
    "clips": (
        f"Random clips of {NUM_FRAMES} frames at {SIZE}x{SIZE}",
        ("reader", "clips / CPU s ↑", "times arvid's", "clips with other frames ↓"),
        clip_row,
    ),
    "long": (
        f"{NUM_FRAMES} frames of a file of an hour, 320x240",
        ("at", "CPU s", "CPU s, decoding from the start", "equal"),
        long_row,
    ),
    "large": (
        "A clip of 49 frames of 4K",
        ("shape", "memory before (MB)", "memory peak (MB)"),
        large_row,
    ),
    "many": (
        "Many small files",
        ("seen", "seconds", "CPU s", "memory peak (MB)"),
        many_row,
    ),
}


if __name__ == "__main__":
    main()
