"""What the metrics of a protocol measured on real clips, kept on disk for all of its rows.

    CACHE/real/<set>/<batch>.safetensors    one tensor or more for the clips of a batch

Rows under one protocol are compared with the same real clips, so the feature network looks at those once. A file is
named by the hash of all that its content depends on: the dataset's fingerprint, which of its clips and frames, the
network with its weights, arvid's code, and the machine, since another one rounds differently. What is read is bit for
bit what was measured. The folder of caches may be deleted at any time.

A file that is damaged, as its checksum tells, is measured anew with a warning. Files are written at once or not at
all, so any number of processes and evaluations may share the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from arvid.cache_dir import cache_dir
from arvid.contracts import VideoDataset
from arvid.evaluation.scores import Measured, Score
from arvid.files import sha256_json
from arvid.hardware import hardware, instruction_set
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

_VERSION = 2
"""Of the files; another one leaves them unread."""


class RealMeasurements:
    """Measurements of real clips on disk.

    Args:
        dataset: the real clips.
        frames: those that metrics look at.
        code: identity of the code that measures.
    """

    def __init__(self, dataset: VideoDataset, frames: slice, code: str) -> None:
        machine = [torch.__version__, hardware(), instruction_set()]
        clips = [dataset.fingerprint(), frames.start, frames.stop]
        self._known = [_VERSION, code, machine, clips]
        self._is_writable = True

    def measure(self, score: Score, indices: Sequence[int], real: Tensor) -> Measured:
        """What a metric measures on the clips `real` (B, T, H, W, 3), which have these indices in the dataset."""
        identity = score.real_identity()
        if identity is None:
            return score.measure_real(real)
        path = self._path(identity, indices)
        found = _read(path)
        if found is None:
            found = {name: x.cpu().contiguous() for name, x in score.measure_real(real).items()}
            self._write(path, found)
        return found

    def read(self, score: Score, indices: Sequence[int]) -> Measured | None:
        """What a metric has measured on these clips before; None where it has not, or keeps nothing."""
        identity = score.real_identity()
        return None if identity is None else _read(self._path(identity, indices))

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
        of_set, of_batch = sha256_json([*self._known, identity]), sha256_json([*indices])
        return cache_dir() / "real" / of_set[:24] / f"{of_batch[:24]}.safetensors"


def _read(path: Path) -> Measured | None:
    """The tensors of a file; None, with a warning unless it is absent, where they are not what was written."""
    if not path.is_file():
        return None
    try:
        return load_tensors(path)[0]
    except (OSError, Damaged) as error:
        logger.warning("%s is damaged (%s): these real clips are measured anew.", path, error)
        return None
