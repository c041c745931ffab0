"""What a tokenizer makes of a video: writes original and reconstruction side by side and says how near they are.

Takes any video. Where its size or its number of frames is none that the tokenizer takes, the last column, row and frame
are repeated, and what that adds is cut off again behind the tokenizer. Long videos stream through in memory that does
not grow with their length, if the tokenizer can do that.

examples:
  arvid reconstruct video.mp4 --tokenizer sprites-magvit_fsq
  arvid reconstruct videos/*.mp4 --tokenizer runs/fsq/checkpoints/last.ckpt --size 128 --out reconstructions
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.data.clips import resize_frames
from arvid.data.collate import normalise, to_uint8
from arvid.data.video import Frames, iter_frames, probe_video, write_frames
from arvid.evaluation.processes import best_device
from arvid.metrics.paired import PairedMetric, Psnr, Ssim
from arvid.metrics.perceptual import Lpips
from arvid.sampling.contact_sheet import side_by_side
from arvid.training.export import load_tokenizer

FORMATS = {"PSNR": "{:.2f} dB", "SSIM": "{:.4f}", "LPIPS": "{:.4f}"}
CHUNK_PIXELS = 1 << 20
"""Frames go through the tokenizer in chunks of about so many pixels, but of one latent frame at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument(
        "--tokenizer", required=True, help="embedded name, tokenizer file or training checkpoint"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reconstructions"),
        help="folder, or for a single video an .mp4 file (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, help="bring the shorter side to so many pixels (default: as it is)"
    )
    parser.add_argument("--frames", type=int, help="take the first so many (default: all)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Videos that cannot be done are named, and the others are done."""
    targets = _targets(options)
    for number in (options.size, options.frames):
        if number is not None and number < 1:
            raise UserError(f"--size and --frames must be at least 1, not {number}.")
    tokenizer = load_tokenizer(options.tokenizer).to(best_device())
    metrics = _metrics()
    failed = []
    for path, target in targets.items():
        try:
            work = plan(path, tokenizer.spec, size=options.size, max_frames=options.frames)
            print(f"{path}: {work.told(tokenizer.spec)}")
            scores = reconstruct(path, tokenizer, work, target, metrics)
        except UserError as error:
            print(error if str(path) in str(error) else f"{path}: {error}", file=sys.stderr)
            failed.append(path)
            continue
        print(f"  {', '.join(f'{name} {score}' for name, score in scores.items())} -> {target}")
    if failed:
        raise UserError(f"{len(failed)} of {len(targets)} videos could not be reconstructed.")
    return 0


def _targets(options: argparse.Namespace) -> dict[Path, Path]:
    """Where each video's reconstruction goes. Raises UserError where two would go to one place."""
    if options.out.suffix.lower() == ".mp4":
        if len(options.videos) > 1:
            raise UserError(f"--out {options.out} is one file: several videos need a folder.")
        targets = {options.videos[0]: options.out}
    else:
        targets = {path: options.out / f"{path.stem}.mp4" for path in options.videos}
    if len(set(targets.values())) < len(targets):
        raise UserError(
            "Some of the videos have the same name: reconstruct them one after another."
        )
    for path, target in targets.items():
        if path.resolve() == target.resolve():
            raise UserError(f"{target} is the video itself: give another --out.")
    return targets


def _metrics() -> dict[str, PairedMetric]:
    """PSNR, SSIM and, where its weights are, LPIPS."""
    metrics: dict[str, PairedMetric] = {"PSNR": Psnr(), "SSIM": Ssim()}
    try:
        metrics["LPIPS"] = Lpips()
    except UserError as error:
        print(f"No LPIPS: {error}", file=sys.stderr)
    return {name: metric.to(best_device()) for name, metric in metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Work:
    """How a video goes through a tokenizer."""

    num_frames: int
    height: int
    width: int
    fps: float
    padded: tuple[int, int, int]
    """Frames, height and width that the tokenizer sees."""
    source: tuple[int, int]
    """Height and width of the file."""

    def told(self, spec: TokenSpec) -> str:
        """What is done, in words."""
        said = f"{self.num_frames} frames of {self.width}x{self.height}"
        if self.source != (self.height, self.width):
            said += f" (resized from {self.source[1]}x{self.source[0]})"
        frames, height, width = self.padded
        if self.padded != (self.num_frames, self.height, self.width):
            said += f", padded to {frames} of {width}x{height} and cut again"
        grid = spec.grid(*self.padded)
        kind = f"{spec.size} ids" if spec.type == "discrete" else f"{spec.size} channels"
        return f"{said}: {grid.t}x{grid.h}x{grid.w} tokens of {kind}."


def plan(
    path: Path, spec: TokenSpec, *, size: int | None = None, max_frames: int | None = None
) -> Work:
    """Look at a video. Raises UserError if it cannot be read."""
    probe = probe_video(path)
    factor = size / min(probe.height, probe.width) if size else 1.0
    height, width = (max(1, round(side * factor)) for side in (probe.height, probe.width))
    num_frames = min(probe.num_frames, max_frames or probe.num_frames)
    ft, fh, fw = spec.strides
    first = 1 if spec.causal else 0
    frames = first + math.ceil((num_frames - first) / ft) * ft
    padded = frames, math.ceil(height / fh) * fh, math.ceil(width / fw) * fw
    return Work(
        num_frames=num_frames,
        height=height,
        width=width,
        fps=probe.fps,
        padded=padded,
        source=(probe.height, probe.width),
    )


def reconstruct(
    path: Path,
    tokenizer: VideoTokenizer,
    work: Work,
    target: Path,
    metrics: dict[str, PairedMetric],
) -> dict[str, str]:
    """Write original and reconstruction side by side; the value of each metric in words, or why it has none.

    Raises UserError as reading, the tokenizer and writing do.
    """
    scores: dict[str, str] = {}
    for metric in metrics.values():
        metric.reset()
    with tqdm(desc=path.name, total=work.num_frames, unit="frame", leave=False) as bar:
        write_frames(target, _pairs(path, tokenizer, work, metrics, scores, bar), work.fps)
    for name in metrics.keys() - scores.keys():
        scores[name] = FORMATS[name].format(metrics[name].compute().value)
    return {name: scores[name] for name in metrics}


def _pairs(
    path: Path,
    tokenizer: VideoTokenizer,
    work: Work,
    metrics: dict[str, PairedMetric],
    scores: dict[str, str],
    bar: tqdm[NoReturn],
) -> Iterator[Frames]:
    """Each frame (H, 2W, 3) beside its reconstruction; metrics look at them on the way."""
    originals: deque[Frames] = deque()
    chunks = _chunks(path, tokenizer.spec, work, originals)
    for video in tokenizer.decode_stream(tokenizer.encode_stream(chunks)):
        made = to_uint8(video)[0].cpu().numpy()[:, : work.height, : work.width]
        given = [originals.popleft() for _ in range(min(len(made), len(originals)))]
        if not given:  # the repeated last frame
            continue
        both = np.stack([np.stack(given), made[: len(given)]])  # (2, T, H, W, 3)
        _measure(both, metrics, scores)
        bar.update(len(given))
        yield from side_by_side(both, gap=4)


def _measure(both: np.ndarray, metrics: dict[str, PairedMetric], scores: dict[str, str]) -> None:
    """Show frames (2, T, H, W, 3) to the metrics, each as a clip of its own, so that chunks may differ in length."""
    original, made = torch.from_numpy(both)[:, :, None].to(best_device())
    for name, metric in metrics.items():
        if name not in scores:
            try:
                metric.update(made, original)
            except UserError as error:  # frames too small for it
                scores[name] = f"- ({error})"


def _chunks(path: Path, spec: TokenSpec, work: Work, originals: deque[Frames]) -> Iterator[Tensor]:
    """The video (1, 3, T, H, W) in chunks, padded; its frames go into `originals` too."""
    frames = islice(_frames(path, work), work.num_frames)
    total, height, width = work.padded
    latent_pixels = spec.strides[0] * height * width
    latent_frames = max(1, CHUNK_PIXELS // latent_pixels)
    bottom, right = height - work.height, width - work.width
    last = None
    for count in spec.chunk_frames(total, latent_frames):
        chunk = list(islice(frames, count))
        originals.extend(chunk)
        last = chunk[-1] if chunk else last
        assert last is not None, "the file was looked at before"
        clip = np.stack(chunk + [last] * (count - len(chunk)))
        clip = np.pad(clip, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
        yield normalise(clip)[None].to(best_device())


def _frames(path: Path, work: Work) -> Iterator[Frames]:
    size = work.height, work.width
    for frame in iter_frames(path):
        yield frame if size == work.source else resize_frames(frame[None], size, "squash")[0]
