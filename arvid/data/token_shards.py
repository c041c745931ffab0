"""Token shards: encoded clips in a folder, on a disk or in object storage, without the videos they come from.

    FOLDER/manifest.json            what the tokens are and what they are of; written first
    FOLDER/00000.safetensors        the tokens, labels, motion scores, rates and captions of the first clips
    FOLDER/00001.safetensors        of the next ones, and so on

Clip i lies in shard i // clips_per_shard, so each is at hand without looking at the others. A shard is whole or absent
and its content depends on nothing but tokenizer and clips: any number of processes may fill a folder, and what one
has finished none makes again. Folders of object storage (s3://, gs://, hf://, https://: whatever fsspec knows) are
read through copies in the cache, each shard being fetched when its first clip is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import safetensors.numpy
import torch
from safetensors import safe_open
from torch import Tensor

from arvid.contracts import Clip, TokenSpec, UserError, VideoDataset
from arvid.data.cache_dir import cache_dir
from arvid.data.collate import Example
from arvid.files import atomic_write, sha256_json, write_json

FORMAT = "arvid tokens 2"
MANIFEST = "manifest.json"
_NUMBERS = ("label", "motion", "fps")
_NAMED = 5  # shards in a message about missing ones


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the shards of a folder hold."""

    tokenizer: str
    """Hash of the tokenizer."""
    data: str
    """Fingerprint of the dataset."""
    spec: TokenSpec
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the clips behind the tokens."""
    classes: tuple[str, ...]
    num_clips: int
    clips_per_shard: int
    posterior: bool = False
    """Whether the shards hold the standard deviations of the tokens too."""

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_clips / self.clips_per_shard)

    def clips_of(self, shard: int) -> range:
        """Numbers of the clips that a shard holds."""
        start = shard * self.clips_per_shard
        return range(start, min(start + self.clips_per_shard, self.num_clips))


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"{shard:05d}.safetensors"


def begin(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder that is to be filled, or see that the one there is the same.

    Raises UserError if the folder holds tokens of another tokenizer or of other clips.
    """
    if not (folder / MANIFEST).is_file():
        write_json(folder / MANIFEST, {"format": FORMAT, **dataclasses.asdict(manifest)})
    found = read_manifest(str(folder))
    for part in dataclasses.fields(Manifest):
        there, here = getattr(found, part.name), getattr(manifest, part.name)
        if there != here:
            raise UserError(
                f"{folder} holds other tokens: {part.name} is {there!r} there, {here!r} here. Use another folder."
            )


def write_shard(
    folder: Path,
    manifest: Manifest,
    shard: int,
    tokens: Tensor,
    spread: Tensor | None,
    facts: Sequence[Mapping[str, Any]],
) -> None:
    """Write a shard, which appears whole or not at all.

    Args:
        tokens: (n, t, h, w[, C]) of the n clips.
        spread: their standard deviations, if these are to be stored.
        facts: caption, label, motion score and fps of each clip.
    """
    tensors = {
        "tokens": tokens.numpy().astype(_dtype(manifest.spec)),
        **{name: np.array([clip[name] for clip in facts]) for name in _NUMBERS},
    }
    if spread is not None:
        tensors["spread"] = spread.numpy().astype(np.float16)
    captions = json.dumps([clip["caption"] for clip in facts])
    with atomic_write(folder / shard_name(shard)) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, {"captions": captions}))


def _dtype(spec: TokenSpec) -> type[np.generic]:
    """How tokens are stored: ids in as few bytes as the vocabulary needs, numbers as they are."""
    if spec.type == "continuous":
        return np.float32
    return next(t for t in (np.uint8, np.uint16, np.int32) if spec.size - 1 <= np.iinfo(t).max)


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """Numbers of the shards that are not in a folder yet."""
    there = {path.name for path in folder.glob("*.safetensors")}
    return [n for n in range(manifest.num_shards) if shard_name(n) not in there]


def read_manifest(path: str) -> Manifest:
    """The manifest of a folder or URL. Raises UserError if there is none, or it cannot be read."""
    try:
        value = json.loads(_read_bytes(f"{path}/{MANIFEST}"))
        if value.pop("format") != FORMAT:
            raise ValueError(f"it does not say {FORMAT!r}")
        value["spec"] = TokenSpec(**_with_tuples(value["spec"]))
        return Manifest(**_with_tuples(value))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no token shards: there is no {MANIFEST}. Make them with `arvid encode`."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}/{MANIFEST} is no manifest of token shards ({error}).") from error


def _with_tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


class EncodedClip(Clip):
    """A clip without frames."""

    _where: str

    def __init__(self, facts: Mapping[str, Any], *, where: str) -> None:
        label = facts["label"]
        values = {
            "caption": facts["caption"],
            "label": None if label < 0 else label,
            **{
                name: None if math.isnan(facts[name]) else facts[name] for name in ("motion", "fps")
            },
            "attributes": {},
            "_where": where,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the base is frozen

    @property
    def video(self) -> NoReturn:
        raise UserError(
            f"{self._where} holds the tokens of clips, not their frames, which are needed here: "
            "name a dataset of videos instead."
        )


class TokenShards(VideoDataset):
    """Clips as their tokens: what `arvid encode` made of a dataset, for machines where the videos are not.

    As a training or validation set it takes the place of that dataset: same clips, same order, same fingerprint. What
    needs frames (training a tokenizer, scoring) cannot be done with it.

    Args:
        path: folder or URL of the shards. Storage other than disk and http needs its package (s3fs, gcsfs).

    Raises UserError if the folder holds no shards, or some are missing or damaged. Of a URL that is seen only when
    they are asked for.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path).rstrip("/")
        self.manifest = read_manifest(self.path)
        self.classes = self.manifest.classes
        self._shards: dict[int, _Shard] = {}
        if not _is_url(self.path):
            self._require_all()

    def _require_all(self) -> None:
        """Raise UserError now if a shard is missing or damaged, instead of hours later."""
        if missing := missing_shards(Path(self.path), self.manifest):
            names = ", ".join(map(shard_name, missing[:_NAMED]))
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise UserError(
                f"{self.path}: {len(missing)} of {self.manifest.num_shards} shards are missing ({names}{more}). "
                "Give the same `arvid encode` again: it makes only those. Or copy them here."
            )
        for shard in range(self.manifest.num_shards):
            self._shard(shard)

    def __len__(self) -> int:
        return self.manifest.num_clips

    def __getitem__(self, index: int) -> Clip:
        """The clip, of which all is known but its frames: asking for `video` raises UserError."""
        return EncodedClip(self.example(index), where=self.path)

    def fingerprint(self) -> str:
        """That of the dataset whose clips were encoded."""
        return self.manifest.data

    def example(self, index: int) -> Example:
        """Tokens (int64 or float32), caption, label, motion score and fps of a clip: -1 (label) and NaN where
        unknown.

        Shards of a posterior have the key `spread` beside them: standard deviations of the tokens (float32).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        number, row = divmod(index, self.manifest.clips_per_shard)
        return self._shard(number).example(row)

    def require_tokenizer(self, tokenizer_hash: str) -> None:
        """Raise UserError if the tokens are another tokenizer's."""
        if self.manifest.tokenizer != tokenizer_hash:
            raise UserError(
                f"{self.path} holds tokens of another tokenizer: its hash is {self.manifest.tokenizer[:16]} there and "
                f"{tokenizer_hash[:16]} in this configuration. Name that tokenizer, or encode the clips with this one."
            )

    def require_posterior(self) -> None:
        """Raise UserError if the tokens' standard deviations were not stored."""
        if not self.manifest.posterior:
            raise UserError(
                f"{self.path} holds tokens without their standard deviations, which data.posterior asks for: "
                "encode the clips anew with that option, or leave it off."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files stay with their process

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            path = self._fetched(shard_name(number))
            self._shards[number] = _Shard(path, len(self.manifest.clips_of(number)))
        return self._shards[number]

    def _fetched(self, name: str) -> Path:
        """Where a file lies: in the folder itself, or in the cache, into which it is copied from object storage."""
        if not _is_url(self.path):
            return Path(self.path) / name
        key = sha256_json([self.path, dataclasses.asdict(self.manifest)])[:24]
        target = cache_dir() / "shards" / key / name
        if not target.is_file():
            content = _read_bytes(f"{self.path}/{name}")
            with atomic_write(target) as temporary:
                temporary.write_bytes(content)
        return target


class _Shard:
    """An open shard, of which only what is asked for is read.

    Raises UserError if the file is damaged or does not hold `num_clips`.
    """

    def __init__(self, path: Path, num_clips: int) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="np")
            self._tokens = self._file.get_slice("tokens")
            names = set(self._file.keys())
            self._spread = self._file.get_slice("spread") if "spread" in names else None
            found = self._tokens.get_shape()[0]
        except Exception as error:  # the library has an error for each thing that may be wrong
            raise UserError(
                f"{path} is damaged ({error}). Delete it and give the same `arvid encode` again, which makes only "
                "what is missing; or copy it anew."
            ) from error
        if found != num_clips:
            raise UserError(f"{path} is of another folder: {found} clips instead of {num_clips}.")

    def example(self, row: int) -> Example:
        tokens = torch.from_numpy(np.array(self._tokens[row]))
        example = {
            "tokens": tokens if tokens.is_floating_point() else tokens.long(),
            "caption": self._captions[row],
            "label": int(self._numbers["label"][row]),
            "motion": float(self._numbers["motion"][row]),
            "fps": float(self._numbers["fps"][row]),
        }
        if self._spread is not None:
            example["spread"] = torch.from_numpy(np.array(self._spread[row])).float()
        return example

    @cached_property
    def _captions(self) -> list[str]:
        captions: list[str] = json.loads(self._file.metadata()["captions"])
        return captions

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        return {name: self._file.get_tensor(name) for name in _NUMBERS}


def _is_url(path: str) -> bool:
    return "://" in path


def _read_bytes(path: str) -> bytes:
    """Content of a file or of what a URL names. Raises FileNotFoundError, and UserError where it cannot be had."""
    if not _is_url(path):
        return Path(path).read_bytes()
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except Exception as error:  # each kind of storage has errors of its own
        raise UserError(f"{path} cannot be read: {error}") from error
