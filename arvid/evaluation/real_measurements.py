"""Cache on disk of metrics' measurements of real clips, shared by all rows of a protocol.

    CACHE/real/<set>/<batch>.safetensors    one or more tensors for the clips of a batch

Rows under one protocol use the same real clips, so the feature network processes them only once. The file name is a
hash of everything the content depends on: the dataset's fingerprint, the clips and frames, the network with its
weights, arvid's code, and the machine (rounding differs between machines). Cached values equal measured ones bit for
bit. The cache folder may be deleted at any time.

A damaged file (wrong checksum) is measured again, with a warning. Files are written atomically, so any number of
processes and evaluations may share the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from arvid.contracts import Clip, VideoDataset
from arvid.evaluation.scores import Measured, Score
from arvid.files import cache_dir, sha256_json
from arvid.hardware import hardware, instruction_set
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

_VERSION = 2
"""Version of the file format. It is part of the key, so files of other versions are not read."""


class RealMeasurements:
    """Cached measurements of real clips.

    Args:
        dataset: the real clips.
        frames: the frames that metrics use.
        code: identity of the measuring code (see `arvid.evaluation.code_identity`).
    """

    def __init__(self, dataset: VideoDataset, frames: slice, code: str) -> None:
        machine = [torch.__version__, hardware(), instruction_set()]
        clips = [dataset.fingerprint(), frames.start, frames.stop]
        if frames.step not in (None, 1):  # earlier keys have no step
            clips.append(frames.step)
        self._known = [_VERSION, code, machine, clips]
        self._is_writable = True

    def measure(self, score: Score, indices: Sequence[int], real: Tensor) -> Measured:
        """Measurements of a metric on the clips `real` (B, T, H, W, 3) with these dataset indices, cached."""
        return self._kept(score.real_identity(), indices, lambda: score.measure_real(real))

    def read(self, score: Score, indices: Sequence[int]) -> Measured | None:
        """Cached measurements of a metric on these clips; None if there are none or the metric is not cached."""
        identity = score.real_identity()
        return None if identity is None else _read(self._path(identity, indices))

    def measure_training(
        self, score: Score, indices: Sequence[int], videos: Tensor, clips: Sequence[Clip]
    ) -> Measured:
        """Measurements of a metric on clips of the training set, cached."""
        identity = _of_training(score)
        return self._kept(identity, indices, lambda: score.measure_training(videos, clips))

    def read_training(self, score: Score, indices: Sequence[int]) -> Measured | None:
        """Like `read`, for clips of the training set."""
        identity = _of_training(score)
        return None if identity is None else _read(self._path(identity, indices))

    def _kept(
        self,
        identity: Mapping[str, Any] | None,
        indices: Sequence[int],
        measure: Callable[[], Measured],
    ) -> Measured:
        if identity is None:
            return measure()
        path = self._path(identity, indices)
        found = _read(path)
        if found is None:
            found = {name: x.cpu().contiguous() for name, x in measure().items()}
            self._write(path, found)
        return found

    def _write(self, path: Path, measured: dict[str, Tensor]) -> None:
        try:
            save_tensors(path, measured)
        except (SafetensorError, OSError) as error:
            if self._is_writable:
                logger.warning(
                    "%s cannot be written (%s), so the next row measures these real clips again. "
                    "Set ARVID_CACHE to a folder that can be written.",
                    path,
                    error,
                )
            self._is_writable = False

    def _path(self, identity: Mapping[str, Any], indices: Sequence[int]) -> Path:
        # one folder per dataset, code, machine and network; one file per batch of clips
        of_set, of_batch = sha256_json([*self._known, identity]), sha256_json([*indices])
        return cache_dir() / "real" / of_set[:24] / f"{of_batch[:24]}.safetensors"


def _of_training(score: Score) -> Mapping[str, Any] | None:
    identity = score.real_identity()
    return None if identity is None else {"clips": "training", **identity}


def _read(path: Path) -> Measured | None:
    """The tensors of a file; None if it is missing, or damaged (with a warning)."""
    if not path.is_file():
        return None
    try:
        return load_tensors(path)[0]
    except (OSError, Damaged) as error:
        logger.warning("%s is damaged (%s): these real clips are measured again.", path, error)
        return None
