"""Protocols: named, frozen ways of measuring. A number without its protocol says nothing."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from arvid import registry
from arvid.contracts import UserError, VideoDataset
from arvid.files import sha256_json

MIN_CLIPS = 2
"""Fewest clips that a distance or a standard error can be computed from."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How clips are made and which metrics look at them.

    The real clips are `num_clips` of a run's validation set, chosen by the seed, as the setting cuts and resizes them.
    """

    name: str
    summary: str
    task: Literal["generation", "prediction"]
    """Generation: from the real clip's condition alone. Prediction: its first frames are given besides."""
    num_clips: int
    metrics: tuple[str, ...]
    condition_frames: int = 0
    """Frames given in a prediction; the metrics look at the frames after them."""
    batch_size: int = 32
    """Clips generated at once; batch i uses seed + i."""
    seed: int = 0

    def describe(self, dataset: VideoDataset) -> dict[str, Any]:
        """Every parameter, with the number of clips there are and the data's and the protocol's hashes."""
        values = {**dataclasses.asdict(self), "metrics": list(self.metrics)}  # as a file has it
        values["num_clips"] = self.available_clips(dataset)
        values["data"] = dataset.fingerprint()[:16]
        return {**values, "hash": sha256_json(values)[:16]}

    def choose(self, dataset: VideoDataset) -> tuple[list[int], list[int]]:
        """Indices of the real clips that are compared with, and of as many others for the row of real clips.

        A permutation that the seed decides, since many datasets are ordered by class. Windows of one video may
        fall on both sides where a dataset cuts several.
        """
        num = self.available_clips(dataset)
        order = np.random.default_rng(self.seed).permutation(len(dataset)).tolist()
        return order[:num], order[num : 2 * num]

    def available_clips(self, dataset: VideoDataset) -> int:
        """Clips that are compared: half of the set at most, so that real can be compared with real.

        Raises UserError if there are fewer than two.
        """
        available = min(self.num_clips, len(dataset) // 2)
        if available < MIN_CLIPS:
            raise UserError(
                f"Protocol {self.name} would compare {available} clips, and {MIN_CLIPS} are the fewest that "
                f"statistics are made of: ask for more, and give a validation set of {2 * MIN_CLIPS} clips or "
                f"more (it has {len(dataset)}; half of them are kept to compare real clips with real ones)."
            )
        return available


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="sprites-generation",
            summary="Sprites from their captions.",
            task="generation",
            num_clips=128,
            metrics=("fd-sprites", "attributes"),
        ),
        Protocol(
            name="sprites-prediction",
            summary="The first frame of sprites clips continued, caption given.",
            task="prediction",
            condition_frames=1,
            num_clips=64,
            metrics=("psnr", "ssim"),
        ),
        Protocol(
            name="clips-generation",
            summary="Clips of one's own data from their conditions.",
            task="generation",
            num_clips=256,
            metrics=("fd-pixels",),
        ),
        Protocol(
            name="clips-prediction",
            summary="The first five frames of clips of one's own data continued, condition given.",
            task="prediction",
            condition_frames=5,
            num_clips=128,
            metrics=("psnr", "ssim"),
        ),
    )
}


def get_protocol(
    name: str, *, num_clips: int | None = None, metrics: Sequence[str] = ()
) -> Protocol:
    """A protocol by name, on request with another number of clips or other metrics (and so with another hash).

    With other metrics it also has another name, so that its record lies beside that of the protocol itself.
    Raises UserError with a suggestion for an unknown name of a protocol or metric.
    """
    if name in PROTOCOLS:
        found = PROTOCOLS[name]
        if num_clips is not None:
            found = dataclasses.replace(found, num_clips=num_clips)
        return _with_metrics(found, tuple(dict.fromkeys(metrics))) if metrics else found
    close = difflib.get_close_matches(name, PROTOCOLS, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"There is no protocol {name!r}.{suggestion} Known: {', '.join(sorted(PROTOCOLS))}."
    )


def _with_metrics(protocol: Protocol, metrics: tuple[str, ...]) -> Protocol:
    for metric in metrics:
        registry.get("metrics", metric)
    name = "-".join((protocol.name, *metrics))
    return dataclasses.replace(protocol, name=name, metrics=metrics)
