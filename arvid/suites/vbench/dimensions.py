"""The seven dimensions that arvid computes itself, one video at a time.

Each gives a video's value as VBench stores it, and its weight in the dimension's score. VBench's code gives different
results with one and with several processes. arvid follows its single-process code: subject consistency and appearance
style weight videos by their number of frames. (With several processes, VBench weights videos equally in the former and
uses only the last frame in the latter.)
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
    """Score of one video. With weight 0 the video does not count."""

    value: float
    weight: float = 1.0


class Dimension(Protocol):
    """One dimension with its networks."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Its networks by name, for the record; may be empty."""

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        """Score a video. Raises UserError if that is impossible, e.g. for one that is too short."""


@dataclass(frozen=True)
class Consistency:
    """Subject consistency (DINO) and background consistency (CLIP B/32): similarity of frames' features.

    Each frame after the first is compared with the previous and with the first frame. Its value is the mean of both
    cosines, clamped to at least 0. The weight is the number of these frames.
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
    """1 - mean absolute difference of neighbouring frames / 255, over static videos.

    Args:
        flow: optical flow of the static filter. None: every video counts, which differs from VBench's protocol.
    """

    flow: Flow | None = None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        if len(video.frames) < 2:
            raise UserError("flickering needs a video of at least two frames")
        frames = video.frames.astype(np.float32)
        steps = [float(np.abs(b - a).mean()) for a, b in pairwise(frames)]
        counts = self.flow is None or _is_static(video, self.flow)
        return VideoScore((255 - float(np.mean(steps))) / 255, weight=float(counts))


@dataclass(frozen=True)
class DynamicDegree:
    """1 if the video has motion, else 0. Criterion: the fastest 5 % of RAFT's flow at about 8 frames per second."""

    flow: Flow
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        frames = video.frames[:: max(1, round(video.fps / DYNAMIC_FPS))]
        speeds = (top_speed(self.flow(a, b), DYNAMIC_SHARE) for a, b in pairwise(frames))
        return VideoScore(float(is_dynamic(speeds, len(frames), min(frames.shape[1:3]))))


@dataclass(frozen=True)
class AestheticQuality:
    """LAION's aesthetic predictor on CLIP L/14, divided by 10, mean over frames."""

    encoder: Encoder
    head: nn.Module
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        features = _encode(video, for_clip, self.encoder)
        return VideoScore(float((self.head(features) / 10).mean()))


@dataclass(frozen=True)
class ImagingQuality:
    """MUSIQ, mean over frames. Values are 0 to 100, as VBench stores them."""

    network: nn.Module
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        device = next(self.network.parameters()).device
        frames = (for_musiq(frame[None]).to(device) for frame in video.frames)
        return VideoScore(float(np.mean([float(self.network(frame)) for frame in frames])))


@dataclass(frozen=True)
class AppearanceStyle:
    """CLIP B/32 cosine between each frame and the prompt's style phrase. The weight is the number of frames."""

    encoder: ClipEncoder
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        assert prompt.style is not None, "every prompt of the dimension has one"
        features = _encode(video, for_clip_by_pillow, self.encoder)
        cosines = features @ self.encoder.text(prompt.style)
        return VideoScore(float(cosines.mean()), weight=len(cosines))


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Locations of the weights: hub names or folders for DINO and CLIP, else files (None: the weights folder)."""

    dino: str = DINO
    clip_b32: str = CLIP_B32
    clip_l14: str = CLIP_L14
    laion_head: Path | None = None
    raft: Path | None = None
    musiq: Path | None = None
    static_filter: bool = True
    """False: temporal flickering uses all videos and needs no RAFT. Its value then differs from VBench's."""


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
"""Dimension -> constructor, for the dimensions that arvid computes."""


def build(name: str, options: WeightsOptions) -> Dimension:
    """A dimension of `BUILDERS` with its networks, on the GPU if there is one.

    Raises UserError if weights or a package are missing.
    """
    return BUILDERS[name](options, best_device())


def _encode(video: Video, prepare: Prepare, encoder: Encoder) -> Float[Tensor, "t d"]:
    starts = range(0, len(video.frames), FRAMES_AT_ONCE)
    parts = [encoder(prepare(video.frames[i : i + FRAMES_AT_ONCE])) for i in starts]
    return torch.cat(parts)


def _is_static(video: Video, flow: Flow) -> bool:
    frames = video.frames
    ends = ((frames[0], frames[-1]), (frames[-1], frames[0]))
    return is_static(
        (top_speed(flow(a, b), STATIC_SHARE) for a, b in pairwise(frames)),
        (top_speed(flow(a, b), STATIC_SHARE) for a, b in ends),
        len(frames),
        min(frames.shape[1:3]),
    )
