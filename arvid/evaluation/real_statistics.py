"""Statistics file: the features and captions of a real set under a protocol. It replaces the real videos.

    FOLDER/<protocol>-<hash of the content>.safetensors

`arvid stats make` measures the real clips once. `arvid evaluate --real FILE` then compares with them, without the
videos. The file has the features of each clip from every network of the protocol's distances; the captions, classes and
names of the clips; and the protocol with the hash of the real clips. So a record made with the file has the same hash
and the same values as a record made with the videos.

Only metrics between sets, in the task `generation`, can use the file. All others need the frames of real clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.files import sha256_json
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors, sha256_tensors

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol
    from arvid.evaluation.scores import Score

SUFFIX = ".safetensors"
FORMAT = "arvid real statistics 1"
FREE = ("name", "summary", "metrics", "optional_metrics", "hash")
"""Parameters in which the protocols of the file and of the evaluation may differ."""
ANNOTATIONS = ("name", "caption", "label", "motion", "fps", "attributes")
"""Fields of a clip that the file keeps."""
INDICES = "indices"
ONLY_MOMENTS = "only_moments"
"""Name of a measurement. It marks rows that only have the mean and covariance of the clips' features."""


def require_generation(protocol: Protocol) -> None:
    """Raise UserError for a protocol that needs the frames of real clips, or conditions per frame."""
    if protocol.task != "generation":
        raise UserError(
            f"Protocol {protocol.name} is a {protocol.task}, which needs the frames of real clips. Statistics "
            "files serve generation only: give the videos with --real."
        )
    if protocol.conditions:
        raise UserError(
            f"Protocol {protocol.name} gives a model {', '.join(protocol.conditions)}, which statistics do not keep. "
            "Give the videos with --real."
        )


def require_without_conditions(clips: Iterable[Clip]) -> None:
    """Raise UserError for clips with conditions besides caption and class, which a file cannot keep."""
    if any(clip.conditions for clip in clips):
        raise UserError(
            "Clips with further conditions (arvid.nn.conditions) cannot be kept as statistics."
        )


class RealStatistics(VideoDataset):
    """The real clips of a statistics file, with their annotations and black frames.

    Args:
        path: file of `save_statistics`.
        protocol: protocol of the evaluation.

    Raises UserError if the file cannot be read, or was made under a protocol that differs in more than `FREE`.
    """

    def __init__(self, path: Path, protocol: Protocol) -> None:
        tensors, about = _read(path)
        try:
            self._load(tensors, about)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: its content is not statistics of real clips ({error!r})."
            ) from error
        self.path = path
        self._require(protocol)

    def _load(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self._made = dict(about["protocol"])
        self._size = int(about["num_clips"])
        self._fingerprints = (str(about["fingerprint"]), about["earlier_fingerprint"])
        self.classes = tuple(map(str, about["classes"]))
        self.has_captions = bool(about["has_captions"])
        self._shape = tuple(map(int, about["shape"]))
        self._clips = {
            int(i): dict(zip(ANNOTATIONS, c, strict=True)) for i, c in about["clips"].items()
        }
        self._positions = {index: i for i, index in enumerate(tensors.pop(INDICES).tolist())}
        self._networks = dict(about["networks"])
        self._features: dict[str, dict[str, Tensor]] = {key: {} for key in self._networks}
        for tensor, features in tensors.items():
            key, _, name = tensor.partition(".")
            if len(features) != len(self._positions) or not features.isfinite().all():
                raise ValueError(f"{tensor} {tuple(features.shape)}")
            self._features[key][name] = features

    def _require(self, protocol: Protocol) -> None:
        require_generation(protocol)
        asked, made = protocol.describe(self), self._made
        differ = sorted(
            name
            for name in asked.keys() | made.keys()
            if name not in FREE and asked.get(name) != made.get(name)
        )
        if differ:
            lines = [f"{name}: {made.get(name)} there, {asked.get(name)} here" for name in differ]
            raise UserError(
                f"{self.path} was made under protocol {made.get('name')}, which differs from {protocol.name}: "
                f"{'; '.join(lines)}. Make statistics under {protocol.name} (arvid stats make)."
            )
        self._require_clips(protocol)

    def _require_clips(self, protocol: Protocol) -> None:
        """Raise UserError if the file lacks clips that the protocol uses, or has clips of another size."""
        used = {i for fold in range(protocol.folds) for i in protocol.choose(self, fold)[0]}
        compared = protocol.real(self) or used
        lacking = len(used - self._clips.keys()) + len(self._positions.keys() ^ set(compared))
        clip = protocol.clip
        if lacking or (clip and self._shape != (clip.num_frames, *clip.height_width, 3)):
            raise UserError(
                f"{self.path}: its content is not statistics of real clips: clips that {protocol.name} uses are "
                "missing, or have another size. Make it again (arvid stats make)."
            )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Clip:
        return Clip(video=np.zeros(self._shape, np.uint8), **self._clips[index])

    def fingerprint(self) -> str:
        return self._fingerprints[0]

    def earlier_fingerprint(self) -> str | None:
        return self._fingerprints[1]

    def lacks(self, score: Score) -> str | None:
        """Why the file does not suffice for a metric, as a clause of a message. None: it suffices."""
        identity = score.real_identity()
        if identity is None:
            return f"it needs the frames of real clips, and {self.path.name} has features only"
        key = _key(identity)
        if key in self._networks:
            only_moments = ONLY_MOMENTS in self._features[key] and not score.of_moments
            return f"{self.path.name} has mean and covariance only" if only_moments else None
        known = ", ".join(str(network.get("network")) for network in self._networks.values())
        return f"{self.path.name} has no features of {identity.get('network')} with these weights, but of {known}"

    def read(self, score: Score, indices: Sequence[int]) -> dict[str, Tensor]:
        """Measurements of a metric on the real clips with these indices."""
        identity = score.real_identity()
        assert identity is not None
        rows = [self._positions[index] for index in indices]
        return {name: features[rows] for name, features in self._features[_key(identity)].items()}

    def measure(self, score: Score, indices: Sequence[int], real: Tensor) -> dict[str, Tensor]:
        """The same as `read`. The black frames `real` are not used."""
        return self.read(score, indices)


def save_statistics(
    folder: Path,
    protocol: Protocol,
    dataset: VideoDataset,
    clips: Mapping[int, Clip],
    measured: Mapping[int, Mapping[str, Tensor]],
    scores: Mapping[str, Score],
    shape: Sequence[int],
) -> Path:
    """Write a statistics file and return its path.

    Args:
        folder: folder of the file.
        protocol: protocol of the measurements.
        dataset: the real clips.
        clips: clips with the annotations to keep, by index.
        measured: measurements `<network's key>.<name>` of each measured clip, by its index.
        scores: a metric for each network, by the network's key.
        shape: frames, height, width and colour channels of a clip.
    """
    order = sorted(measured)
    tensors = {INDICES: torch.tensor(order)}
    for name in measured[order[0]]:
        tensors[name] = torch.stack([measured[index][name] for index in order])
    about = {
        "protocol": protocol.describe(dataset),
        "num_clips": len(dataset),
        "fingerprint": dataset.fingerprint(),
        "earlier_fingerprint": dataset.earlier_fingerprint(),
        "classes": dataset.classes,
        "has_captions": dataset.has_captions,
        "shape": shape,
        "networks": {key: score.real_identity() for key, score in scores.items()},
        "clips": {str(i): [getattr(clips[i], name) for name in ANNOTATIONS] for i in sorted(clips)},
    }
    digest = sha256_json([about, sha256_tensors(tensors)])
    path = folder / f"{protocol.name}-{digest[:12]}{SUFFIX}"
    save_tensors(path, tensors, {"format": FORMAT, "about": json.dumps(about)})
    return path


def key_of(score: Score) -> str | None:
    """Key of a metric's measurements in a file; None for a metric that needs frames."""
    identity = score.real_identity()
    return None if identity is None else _key(identity)


def _key(identity: Mapping[str, Any]) -> str:
    return sha256_json(identity)[:16]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = load_tensors(path)
        about = json.loads(metadata["about"]) if metadata.get("format") == FORMAT else None
    except (OSError, Damaged, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable file of `arvid stats make` ({error}).") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: not a file of `arvid stats make`.")
    return tensors, about
