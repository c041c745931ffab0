"""The seven dimensions that are measured in this process, one video at a time.

Each gives a video's value as VBench stores it, and the weight with which it enters the dimension's score. Where
VBench's code for one process and for several disagree, the one for one process is followed: subject consistency and
appearance style weigh videos by their frames (with several processes the former weighs all videos the same, and the
latter looks at the last frame alone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.data.video import Video
from arvid.processes import best_device
from arvid.suites.vbench.flow import (
    Flow,
    RaftFlow,
    is_dynamic,
    is_static,
    load_raft,
    top_speed,
)
from arvid.suites.vbench.frames import (
    Prepare,
    for_clip,
    for_clip_by_pillow,
    for_dino,
    for_musiq,
)
from arvid.suites.vbench.networks import (
    CLIP_B32,
    CLIP_L14,
    DINO,
    ClipEncoder,
    Encoder,
    find,
    load_clip,
    load_dino,
    load_laion_head,
    load_musiq,
)
from arvid.suites.vbench.suite import Prompt

FRAMES_AT_ONCE = 32
DYNAMIC_FPS = 8
DYNAMIC_SHARE = 0.05
STATIC_SHARE = 0.02


@dataclass(frozen=True)
class VideoScore:
    """What one video scores. Weight 0: it does not count."""

    value: float
    weight: float = 1.0


class Dimension(Protocol):
    """One dimension with its networks."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Its networks by name, for the record; empty if it has none."""

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        """Score a video. Raises UserError for one that cannot be scored."""


@dataclass(frozen=True)
class Consistency:
    """Subject consistency (DINO) and background consistency (CLIP B/32): features stay as they were.

    Each frame after the first is compared with the one before and with the first: the mean of both cosines, each
    at least 0. The weight is the number of these frames.
    """

    encoder: Encoder
    prepare: Prepare
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        features = _encode(video, self.prepare, self.encoder)
        if len(features) < 2:
            raise UserError("consistency needs a video of at least two frames")
        before = (features[1:] * features[:-1]).sum(-1).clamp_min(0)
        first = (features[1:] * features[0]).sum(-1).clamp_min(0)
        return VideoScore(float((before + first).mean() / 2), weight=len(features) - 1)


@dataclass(frozen=True)
class TemporalFlickering:
    """1 - mean absolute difference of neighbouring frames / 255, of videos that stand still.

    Args:
        flow: of the static filter; without it every video counts, which VBench asks not to do.
    """

    flow: Flow | None = None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        if len(video.frames) < 2:
            raise UserError("flickering needs a video of at least two frames")
        frames = video.frames.astype(np.float32)
        steps = [float(np.abs(b - a).mean()) for a, b in pairwise(frames)]
        counts = self.flow is None or _stands_still(video, self.flow)
        return VideoScore((255 - float(np.mean(steps))) / 255, weight=float(counts))


@dataclass(frozen=True)
class DynamicDegree:
    """1 where the video moves, 0 where it does not: RAFT's fastest 5 % at about 8 frames a second."""

    flow: Flow
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        frames = video.frames[:: max(1, round(video.fps / DYNAMIC_FPS))]
        speeds = (top_speed(self.flow(a, b), DYNAMIC_SHARE) for a, b in pairwise(frames))
        return VideoScore(float(is_dynamic(speeds, len(frames), min(frames.shape[1:3]))))


@dataclass(frozen=True)
class AestheticQuality:
    """LAION's predictor on CLIP L/14, a tenth of it, mean over the frames."""

    encoder: Encoder
    head: nn.Module
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        features = _encode(video, for_clip, self.encoder)
        return VideoScore(float((self.head(features) / 10).mean()))


@dataclass(frozen=True)
class ImagingQuality:
    """MUSIQ, mean over the frames: a video's value is 0 to 100, as VBench stores it."""

    network: nn.Module
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        device = next(self.network.parameters()).device
        frames = (for_musiq(frame[None]).to(device) for frame in video.frames)
        return VideoScore(float(np.mean([float(self.network(frame)) for frame in frames])))


@dataclass(frozen=True)
class AppearanceStyle:
    """Cosine of each frame and the prompt's style phrase in CLIP B/32; the weight is the number of frames."""

    encoder: ClipEncoder
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        assert prompt.style is not None, "every prompt of the dimension has one"
        features = _encode(video, for_clip_by_pillow, self.encoder)
        cosines = features @ self.encoder.text(prompt.style)
        return VideoScore(float(cosines.mean()), weight=len(cosines))


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Where the weights are. Hub names or folders for DINO and CLIP; files, or None for their usual place."""

    dino: str = DINO
    clip_b32: str = CLIP_B32
    clip_l14: str = CLIP_L14
    laion_head: Path | None = None
    raft: Path | None = None
    musiq: Path | None = None
    static_filter: bool = True
    """Without it temporal flickering needs no RAFT, and is another number."""


def _subject_consistency(options: WeightsOptions, device: torch.device) -> Dimension:
    encoder = load_dino(options.dino)
    return Consistency(encoder, for_dino, {options.dino: encoder.model.to(device)})


def _background_consistency(options: WeightsOptions, device: torch.device) -> Dimension:
    encoder = load_clip(options.clip_b32, "Background consistency")
    return Consistency(encoder, for_clip, {options.clip_b32: encoder.model.to(device)})


def _temporal_flickering(options: WeightsOptions, device: torch.device) -> Dimension:
    if not options.static_filter:
        return TemporalFlickering()
    network = load_raft(find("raft-things", options.raft)).to(device)
    return TemporalFlickering(RaftFlow(network), {"raft-things": network})


def _dynamic_degree(options: WeightsOptions, device: torch.device) -> Dimension:
    network = load_raft(find("raft-things", options.raft)).to(device)
    return DynamicDegree(RaftFlow(network), {"raft-things": network})


def _aesthetic_quality(options: WeightsOptions, device: torch.device) -> Dimension:
    head = load_laion_head(options.laion_head).to(device)
    encoder = load_clip(options.clip_l14, "Aesthetic quality")
    networks = {options.clip_l14: encoder.model.to(device), "laion-aesthetic-l14": head}
    return AestheticQuality(encoder, head, networks)


def _imaging_quality(options: WeightsOptions, device: torch.device) -> Dimension:
    network = load_musiq(options.musiq).to(device)
    return ImagingQuality(network, {"musiq-spaq": network})


def _appearance_style(options: WeightsOptions, device: torch.device) -> Dimension:
    encoder = load_clip(options.clip_b32, "Appearance style")
    return AppearanceStyle(encoder, {options.clip_b32: encoder.model.to(device)})


BUILDERS: dict[str, Callable[[WeightsOptions, torch.device], Dimension]] = {
    "temporal_flickering": _temporal_flickering,
    "subject_consistency": _subject_consistency,
    "background_consistency": _background_consistency,
    "dynamic_degree": _dynamic_degree,
    "aesthetic_quality": _aesthetic_quality,
    "imaging_quality": _imaging_quality,
    "appearance_style": _appearance_style,
}
"""The dimensions measured here, by name."""


def build(name: str, options: WeightsOptions) -> Dimension:
    """A dimension of `BUILDERS` with its networks, on the GPU if there is one.

    Raises UserError where weights or a package are missing.
    """
    return BUILDERS[name](options, best_device())


def _encode(video: Video, prepare: Prepare, encoder: Encoder) -> Float[Tensor, "t d"]:
    starts = range(0, len(video.frames), FRAMES_AT_ONCE)
    parts = [encoder(prepare(video.frames[i : i + FRAMES_AT_ONCE])) for i in starts]
    return torch.cat(parts)


def _stands_still(video: Video, flow: Flow) -> bool:
    frames = video.frames
    ends = ((frames[0], frames[-1]), (frames[-1], frames[0]))
    return is_static(
        (top_speed(flow(a, b), STATIC_SHARE) for a, b in pairwise(frames)),
        (top_speed(flow(a, b), STATIC_SHARE) for a, b in ends),
        len(frames),
        min(frames.shape[1:3]),
    )
