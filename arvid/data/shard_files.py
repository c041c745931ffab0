"""Write the files of a folder of token shards, and read its manifest.

    FOLDER/manifest.json            tokenizer, dataset and shape of the tokens; written first
    FOLDER/00000.safetensors        tokens, captions and values of other conditions of the first clips (see shard.py)
    FOLDER/00001.safetensors        the same of the next clips, and so on

Clip i is in shard i // clips_per_shard, so it can be read without the other shards. A shard is complete or absent, and
its content depends on tokenizer and clips alone. So any number of processes may fill a folder, and no shard is made
twice. Manifest and shards hold checksums of their content (see arvid/sealed.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from arvid.contracts import TokenSpec, UserError
from arvid.files import atomic_write, sha256_json
from arvid.sealed import (
    KEY,
    seal_tensors,
    verify,
    write_sealed_json,
)

FORMAT = "arvid tokens 4"
CAPTIONS_IN_HEADERS = "arvid tokens 3"
"""Format of older folders, whose shards have their captions in the header. They are still read and filled."""
UNSEALED = "arvid tokens 2"
"""Format of still older folders, without checksums. They are still read and filled."""
MANIFEST = "manifest.json"
CAPTIONS, CAPTION_ENDS = "captions", "caption_ends"
"""Tensors with the captions: their text in UTF-8 (uint8), and the end of each in bytes (n,)."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of the shards of a folder."""

    tokenizer: str
    """Hash of the tokenizer."""
    data: str
    """Fingerprint of the dataset."""
    spec: TokenSpec
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the encoded clips."""
    classes: tuple[str, ...]
    num_clips: int
    clips_per_shard: int
    value_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Of conditions: see `VideoDataset.value_names`."""
    posterior: bool = False
    """Whether the shards also hold the standard deviations of the tokens."""
    sealed: bool = dataclasses.field(default=True, compare=False)
    """Whether every file of the folder must have a checksum. A file without it is damaged."""

    def stored(self) -> dict[str, Any]:
        """The fields that the file contains: all but `sealed` and the tokenizer's codes. The file's format states
        `sealed`. Empty `value_names` are left out, because older files have none."""
        left_out = {"sealed"} if self.value_names else {"sealed", "value_names"}
        stored = {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
        del stored["spec"]["codes"]
        return stored

    def name_of(self, shard: int) -> str:
        """Hash that identifies a shard among all shards of all folders."""
        return sha256_json([self.stored(), shard])

    @property
    def num_shards(self) -> int:
        """Number of shards of the folder. The last one may have fewer clips."""
        return math.ceil(self.num_clips / self.clips_per_shard)

    def clips_of(self, shard: int) -> range:
        """Indices of the clips in a shard."""
        start = shard * self.clips_per_shard
        return range(start, min(start + self.clips_per_shard, self.num_clips))


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"{shard:05d}.safetensors"


def begin(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder, or check that an existing one is the same. Returns the manifest in the folder.

    Raises UserError if the folder holds tokens of another tokenizer or of other clips.
    """
    if not (folder / MANIFEST).is_file():
        write_sealed_json(folder / MANIFEST, {"format": FORMAT, **manifest.stored()})
    found = read_manifest(str(folder))
    for name in {**found.stored(), **manifest.stored()}:
        there, here = getattr(found, name), getattr(manifest, name)
        if there != here:
            raise UserError(
                f"{folder} holds other tokens: {name} is {there!r} there, {here!r} here. Use another folder."
            )
    return found


def write_shard(
    folder: Path,
    manifest: Manifest,
    shard: int,
    tokens: Tensor,
    std: Tensor | None,
    facts: Sequence[Mapping[str, Any]],
) -> None:
    """Write a shard atomically.

    Args:
        folder: folder of the shards.
        manifest: its manifest.
        shard: number of the shard.
        tokens: tokens (n, t, h, w[, C]) of its n clips.
        std: standard deviations of the tokens, stored under the name "spread". None: store none.
        facts: caption and values of the conditions of each clip, as `describe_clip` returns them.
    """
    tensors = {
        "tokens": tokens.numpy().astype(_dtype(manifest.spec)),
        **{
            name: np.stack([clip[name] for clip in facts]) for name in facts[0] if name != "caption"
        },
    }
    if std is not None:
        tensors["spread"] = std.numpy().astype(np.float16)
    # JSON may hold half of a surrogate pair, which strict UTF-8 refuses.
    captions = [clip["caption"].encode("utf-8", "surrogatepass") for clip in facts]
    tensors[CAPTIONS] = np.frombuffer(b"".join(captions), np.uint8)
    tensors[CAPTION_ENDS] = np.cumsum([len(caption) for caption in captions])
    content = seal_tensors(safetensors.numpy.save(tensors, {"name": manifest.name_of(shard)}))
    with atomic_write(folder / shard_name(shard)) as temporary:
        temporary.write_bytes(content)


def _dtype(spec: TokenSpec) -> type[np.generic]:
    """Storage type of tokens: the smallest integer type for the vocabulary, float32 for continuous tokens."""
    if spec.type == "continuous":
        return np.float32
    return next(
        t for t in (np.uint8, np.uint16, np.int32, np.int64) if spec.size - 1 <= np.iinfo(t).max
    )


def first_invalid(tokens: NDArray[Any], spec: TokenSpec) -> int | None:
    """Row of the first clip with invalid tokens (n, t, h, w[, C]): ids outside the vocabulary, or not finite."""
    is_discrete = spec.type == "discrete"
    valid = (tokens >= 0) & (tokens < spec.size) if is_discrete else np.isfinite(tokens)
    of_clips = valid.reshape(len(tokens), -1).all(1)
    return None if of_clips.all() else int(of_clips.argmin())


def describe_invalid(spec: TokenSpec) -> str:
    """Description of invalid tokens, for messages."""
    if spec.type == "continuous":
        return "tokens that are not finite"
    return f"ids outside the vocabulary of {spec.size}"


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """Numbers of the shards that a folder does not hold yet."""
    there = set(os.listdir(folder))
    return [n for n in range(manifest.num_shards) if shard_name(n) not in there]


def read_manifest(path: str) -> Manifest:
    """The manifest of a folder or URL. Raises UserError if it is missing or damaged."""
    try:
        content = read_bytes(f"{path}/{MANIFEST}")
        value = json.loads(content)
        sealed = _is_sealed(value.pop("format"))
        if sealed:
            verify(content)
            del value[KEY]
        value["spec"] = TokenSpec(**_with_tuples(value["spec"]))
        value["value_names"] = _with_tuples(value.get("value_names", {}))
        manifest = Manifest(**_with_tuples(value), sealed=sealed)
        if manifest.num_clips < 1 or manifest.clips_per_shard < 1:
            raise ValueError(f"{manifest.num_clips} clips in shards of {manifest.clips_per_shard}")
        return manifest
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no token shards: there is no {MANIFEST}. Make them with `arvid encode`."
        ) from error
    except UserError:  # complete already; UserError is a ValueError, which is caught next
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}/{MANIFEST} is not a manifest of token shards ({error}). Delete it and run the same `arvid encode` "
            "again to write it, or copy it again."
        ) from error


def _is_sealed(stated: str) -> bool:
    """Whether files of a format have checksums."""
    if stated not in (FORMAT, CAPTIONS_IN_HEADERS, UNSEALED):
        raise ValueError(f"it says {stated!r}, not {FORMAT!r}")
    return stated != UNSEALED


def _with_tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn errors about a shard's content into UserErrors with the file's name and what to do. A missing file stays a
    FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except OSError as error:  # not about the content: too many open files, no permission
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged header causes many types of errors
        raise UserError(
            f"{path} is damaged ({error}). Delete it and run the same `arvid encode` again, which makes only "
            "missing shards; or copy it again."
        ) from error


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as s3://bucket/folder."""
    return "://" in path


def read_bytes(path: str) -> bytes:
    """Content of a file or URL. Raises FileNotFoundError for a missing file, UserError for an unreadable URL."""
    if not is_url(path):
        return Path(path).read_bytes()
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except Exception as error:  # each storage library has its own error types
        raise UserError(f"{path} cannot be read: {error}") from error
