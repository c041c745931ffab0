"""Reconstructs a video with a tokenizer: writes original and reconstruction side by side, and measures the error.

Videos are streamed in chunks. They are padded to a size that the tokenizer takes; the padding is cut off afterwards.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.data.clips import resize_frames
from arvid.data.collate import normalise, to_uint8
from arvid.data.video import Frames, iter_frames, probe_video, write_frames
from arvid.metrics.paired import PairedMetric, Psnr, Ssim
from arvid.metrics.perceptual import Lpips
from arvid.nn.finite import require_finite_weights
from arvid.processes import best_device
from arvid.progress import Bar
from arvid.sampling.contact_sheet import side_by_side

FORMATS = {"PSNR": "{:.2f} dB", "SSIM": "{:.4f}", "LPIPS": "{:.4f}"}
CHUNK_PIXELS = 1 << 20
"""Approximate number of pixels of a chunk. A chunk has at least one latent frame."""


def available_metrics() -> dict[str, PairedMetric]:
    """PSNR, SSIM and, if its weights are on this machine, LPIPS."""
    metrics: dict[str, PairedMetric] = {"PSNR": Psnr(), "SSIM": Ssim()}
    try:
        metrics["LPIPS"] = Lpips()
    except UserError as error:
        print(f"No LPIPS: {error}", file=sys.stderr)
    return {name: metric.to(best_device()) for name, metric in metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Sizes of a video before, in and after the tokenizer."""

    num_frames: int
    height: int
    width: int
    fps: float
    padded: tuple[int, int, int]
    """Frames, height and width of the tokenizer's input."""
    source: tuple[int, int]
    """Height and width of the file."""

    def describe(self, spec: TokenSpec) -> str:
        """Sizes and token grid as a sentence for the user."""
        text = f"{self.num_frames} frames of {self.width}x{self.height}"
        if self.source != (self.height, self.width):
            text += f" (resized from {self.source[1]}x{self.source[0]})"
        frames, height, width = self.padded
        if self.padded != (self.num_frames, self.height, self.width):
            text += f", padded to {frames} of {width}x{height} and cut again"
        grid = spec.grid(*self.padded)
        kind = f"{spec.size} ids" if spec.type == "discrete" else f"{spec.size} channels"
        return f"{text}: {grid.t}x{grid.h}x{grid.w} tokens of {kind}."


def plan(
    path: Path, spec: TokenSpec, *, size: int | None = None, max_frames: int | None = None
) -> Work:
    """Read a video's size and plan its reconstruction. Raises UserError if it cannot be read."""
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
    """Write original and reconstruction side by side. Returns each metric's value as text, or why it has none.

    Raises UserError if weights are not finite, and as reading, the tokenizer and writing do.
    """
    require_finite_weights(tokenizer, "This tokenizer")
    scores: dict[str, str] = {}
    for metric in metrics.values():
        metric.reset()
    with Bar(work=path.name, total=work.num_frames, unit="frame") as bar:
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
    bar: Bar,
) -> Iterator[Frames]:
    """Yield each frame beside its reconstruction, (H, 2W, 3), and update the metrics with it."""
    originals: deque[Frames] = deque()  # frames read, but not decoded yet: decoding may lag
    chunks = _chunks(path, tokenizer.spec, work, originals)
    for video in tokenizer.decode_stream(tokenizer.encode_stream(chunks)):
        made = to_uint8(video)[0].cpu().numpy()[:, : work.height, : work.width]
        given = [originals.popleft() for _ in range(min(len(made), len(originals)))]
        if not given:  # only padding is left
            continue
        both = np.stack([np.stack(given), made[: len(given)]])  # (2, T, H, W, 3)
        _measure(both, metrics, scores)
        bar.update(len(given))
        yield from side_by_side(both, gap=4)


def _measure(both: np.ndarray, metrics: dict[str, PairedMetric], scores: dict[str, str]) -> None:
    """Update the metrics with frames (2, T, H, W, 3), each as a clip of one frame, so chunks may differ in length."""
    original, made = torch.from_numpy(both)[:, :, None].to(best_device())
    for name, metric in metrics.items():
        if name not in scores:
            try:
                metric.update(made, original)
            except UserError as error:  # frames too small for it
                scores[name] = f"- ({error})"


def _chunks(path: Path, spec: TokenSpec, work: Work, originals: deque[Frames]) -> Iterator[Tensor]:
    """Yield the padded video in chunks (1, 3, T, H, W). The unpadded frames are appended to `originals`."""
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
        assert last is not None, "`plan` found at least one frame"
        clip = np.stack(chunk + [last] * (count - len(chunk)))
        clip = np.pad(clip, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
        yield normalise(clip)[None].to(best_device())


def _frames(path: Path, work: Work) -> Iterator[Frames]:
    size = work.height, work.width
    for frame in iter_frames(path):
        yield frame if size == work.source else resize_frames(frame[None], size, "squash")[0]
