"""Features of a set of clips on disk, written batch by batch, so that an interrupted evaluation goes on.

    FOLDER/<key>/key.json              what the features depend on
    FOLDER/<key>/<first>-<hash>.safetensors    one batch: `indices` int64 (B,), `features` float32 (B, d)

A file is whole or absent, and a clip that two processes computed counts once. Other sample counts, bootstrap
intervals and KVD are computed from here without running a network again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arvid.contracts import UserError
from arvid.files import atomic_write, sha256_json, write_json

_KEY_FILE = "key.json"


class FeatureStore:
    """The features of one set of clips over one network.

    Args:
        folder: the folder of all stores.
        key: everything the features depend on (the clips' fingerprint, protocol, feature network and its sha256,
            checkpoint, seed), as JSON has it. Another key is another store.

    Raises UserError if what lies there belongs to another key.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self.key = json.loads(json.dumps(dict(key)))
        self.folder = Path(folder) / sha256_json(self.key)[:16]
        path = self.folder / _KEY_FILE
        if not path.exists():
            write_json(path, self.key)
        elif _read_json(path) != self.key:
            raise UserError(f"{path} belongs to other features than {self.folder.name}: delete it.")

    def add(self, indices: Int[Tensor, " b"], features: Float[Tensor, "b d"]) -> None:
        """Keep the features of the clips with these numbers; on disk when it returns.

        Raises ValueError for features that are not finite or not one for each clip.
        """
        if features.ndim != 2 or len(indices) != len(features) or not len(indices):
            shapes = f"{tuple(indices.shape)} and {tuple(features.shape)}"
            raise ValueError(
                f"A batch has one row of features for each index, got shapes {shapes}."
            )
        if not torch.isfinite(features).all():
            raise ValueError("Features that are not finite are not kept.")
        numbers = indices.to("cpu", torch.int64).contiguous()
        name = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:12]
        with atomic_write(self.folder / f"{int(numbers[0]):08d}-{name}.safetensors") as temporary:
            rows = features.to("cpu", torch.float32).contiguous()
            save_file({"indices": numbers, "features": rows}, temporary)

    def done(self) -> set[int]:
        """Numbers of the clips that are there."""
        return {int(i) for path in self._files() for i in _read(path, "indices")}

    def batches(self) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b d"]]]:
        """Indices and features file by file, each clip once; one file is in memory at a time."""
        seen: set[int] = set()
        for path in self._files():
            indices, features = _read(path, "indices"), _read(path, "features")
            new = [row for row, i in enumerate(indices.tolist()) if i not in seen]
            seen.update(indices.tolist())
            if new:
                yield indices[new], features[new]

    def features(self, num: int | None = None) -> Float[Tensor, "n d"]:
        """Features of the clips 0 to num - 1 (of all that are there by default), in the order of their numbers.

        The same for any number of processes and any batch size. Raises ValueError if one of them is missing.
        """
        found = list(self.batches())
        if not found:
            raise ValueError(f"{self.folder} holds no features yet.")
        indices, features = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = indices.argsort()
        if num is None:
            return features[order]
        order = order[indices[order] < num]
        if len(order) != num:
            raise ValueError(f"{self.folder} holds {len(order)} of the features of {num} clips.")
        return features[order]

    def _files(self) -> list[Path]:
        """Whole batches, in a fixed order; atomic_write's temporary neighbours begin with a dot."""
        return sorted(p for p in self.folder.glob("*.safetensors") if not p.name.startswith("."))


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Delete it: its clips are computed anew."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Delete the folder {path.parent}."
        ) from error
