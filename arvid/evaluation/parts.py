"""The finished batches of an evaluation on disk.

    FOLDER/<record>.parts-<identity>/<batch>.safetensors    what each score measured on the clips of one batch

An interrupted evaluation goes on with the batches that are missing, whichever and how many processes made the
others; the one of rank 0 then joins all of them in order. So the result is the same for any number of processes,
which must see the same folder.
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
"""Score -> name -> tensor, whose first axis runs over clips."""


class Parts:
    """The finished batches of one evaluation.

    Args:
        folder: where records lie.
        record: stem of the record's file.
        identity: hash of all that the numbers depend on: batches of another one are not looked at.
    """

    def __init__(self, folder: Path, record: str, identity: str) -> None:
        self.folder = folder / f"{record}.parts-{identity[:12]}"
        self._pattern = f"{record}.parts-*"

    def __contains__(self, batch: str) -> bool:
        """Whether a batch is finished: one whose file is damaged is not, with a warning."""
        if not self._path(batch).is_file():
            return False
        try:
            self.read(batch)
        except UserError as error:
            logger.warning("A batch is measured anew: %s", error)
            return False
        return True

    def write(
        self, batch: str, measured: Mapping[str, Mapping[str, Tensor]], seconds: float
    ) -> None:
        """Keep what was measured on a batch and how long its generation took; on disk when it returns."""
        tensors = {
            json.dumps([score, name]): tensor
            for score, found in measured.items()
            for name, tensor in found.items()
        }
        save_tensors(self._path(batch), tensors, {"seconds": repr(seconds)})

    def read(self, batch: str) -> tuple[Measurements, float]:
        """What `write` kept. Raises UserError if it is missing or damaged."""
        path = self._path(batch)
        measured: Measurements = {}
        try:
            tensors, metadata = load_tensors(path)
        except (OSError, Damaged) as error:
            raise UserError(
                f"{path} cannot be read ({error}). Delete it: its batch is made anew. Processes that share an "
                "evaluation must see one folder."
            ) from error
        for key, tensor in tensors.items():
            score, name = json.loads(key)
            measured.setdefault(score, {})[name] = tensor
        return measured, float(metadata["seconds"])

    def joined(self, batches: Sequence[str]) -> tuple[Measurements, float]:
        """The batches one after another, and the seconds of all."""
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
        """Delete them, and those that other versions of the evaluation left."""
        for folder in self.folder.parent.glob(self._pattern):
            shutil.rmtree(folder)

    def _path(self, batch: str) -> Path:
        return self.folder / f"{batch}.safetensors"
