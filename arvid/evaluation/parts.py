"""The finished batches of an evaluation on disk.

    FOLDER/<record>.parts-<identity>/<batch>.safetensors    what each score measured on the clips of one batch

An interrupted evaluation goes on with the batches that are missing, whichever and how many processes made the
others; the one of rank 0 then joins all of them in order. So the result is the same for any number of processes,
which must see the same folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arvid.contracts import UserError
from arvid.files import atomic_write

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
        return self._path(batch).is_file()

    def write(
        self, batch: str, measured: Mapping[str, Mapping[str, Tensor]], seconds: float
    ) -> None:
        """Keep what was measured on a batch and how long its generation took; on disk when it returns."""
        tensors = {
            json.dumps([score, name]): tensor.cpu().contiguous()
            for score, found in measured.items()
            for name, tensor in found.items()
        }
        with atomic_write(self._path(batch)) as temporary:
            save_file(tensors, temporary, {"seconds": repr(seconds)})

    def read(self, batch: str) -> tuple[Measurements, float]:
        """What `write` kept. Raises UserError if it is missing or cannot be read."""
        path = self._path(batch)
        measured: Measurements = {}
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # no mapping
                    score, name = json.loads(key)
                    measured.setdefault(score, {})[name] = file.get_tensor(key)
                return measured, float(file.metadata()["seconds"])
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}). Delete it: its batch is made anew. Processes that share an "
                "evaluation must see one folder."
            ) from error

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
