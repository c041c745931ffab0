"""The finished batches of an evaluation on disk.

    FOLDER/<record>.parts-<identity>/<batch>.safetensors    measurements of every score on the clips of one batch

An interrupted evaluation continues with the missing batches. Rank 0 joins all batches in order, so the result is the
same for any number of processes. All processes must see the same folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

Measurements = dict[str, dict[str, Tensor]]
"""Score -> name -> tensor. The first axis of each tensor is the clip."""


class Parts:
    """The finished batches of one evaluation.

    Args:
        folder: folder of the records.
        record: stem of the record's file.
        identity: hash of everything the values depend on. Batches with another identity are ignored.
    """

    def __init__(self, folder: Path, record: str, identity: str) -> None:
        self.folder = folder / f"{record}.parts-{identity[:12]}"
        self._pattern = f"{record}.parts-*"

    def __contains__(self, batch: str) -> bool:
        """Whether a batch is finished. A damaged file counts as unfinished, with a warning."""
        if not self._path(batch).is_file():
            return False
        try:
            self.read(batch)
        except UserError as error:
            logger.warning("A batch is measured again: %s", error)
            return False
        return True

    def write(
        self, batch: str, measured: Mapping[str, Mapping[str, Tensor]], seconds: float
    ) -> None:
        """Write the measurements of a batch and the seconds of its generation to disk."""
        tensors = {
            json.dumps([score, name]): tensor
            for score, found in measured.items()
            for name, tensor in found.items()
        }
        save_tensors(self._path(batch), tensors, {"seconds": repr(seconds)})

    def read(self, batch: str) -> tuple[Measurements, float]:
        """Measurements and seconds from `write`. Raises UserError if the file is missing or damaged."""
        path = self._path(batch)
        measured: Measurements = {}
        try:
            tensors, metadata = load_tensors(path)
        except (OSError, Damaged) as error:
            raise UserError(
                f"{path} cannot be read ({error}). Delete it: its batch is then made again. All processes of an "
                "evaluation must see the same folder."
            ) from error
        for key, tensor in tensors.items():
            score, name = json.loads(key)
            measured.setdefault(score, {})[name] = tensor
        return measured, float(metadata["seconds"])

    def joined(self, batches: Sequence[str]) -> tuple[Measurements, float]:
        """Measurements of the batches concatenated in order, and their seconds in total."""
        pieces: dict[str, dict[str, list[Tensor]]] = {}
        total = 0.0
        for measured, seconds in map(self.read, batches):
            total += seconds
            for score, found in measured.items():
                for name, tensor in found.items():
                    pieces.setdefault(score, {}).setdefault(name, []).append(tensor)
        joined = {s: {n: torch.cat(t) for n, t in found.items()} for s, found in pieces.items()}
        return joined, total

    def remove(self) -> None:
        """Delete the batches, also those of other identities."""
        for folder in self.folder.parent.glob(self._pattern):
            shutil.rmtree(folder)

    def _path(self, batch: str) -> Path:
        return self.folder / f"{batch}.safetensors"
