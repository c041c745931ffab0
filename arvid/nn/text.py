"""Text encoders: a small trainable encoder of words, and frozen Hugging Face encoders."""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import cache_dir, sha256_json
from arvid.nn.attention import Transformer
from arvid.packs import KEY_BYTES, Packs
from arvid.ranges import at_least
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors

logger = logging.getLogger(__name__)

NUM_TOKENS = 256
"""Default length of a prompt of `HuggingFaceTextEncoder`."""
WIDTHS = {
    "microsoft/phi-2": 2560,
    "google/flan-t5-base": 768,
    "google/flan-t5-large": 1024,
    "google/flan-t5-xl": 2048,
    "google/t5-v1_1-xxl": 4096,
    "openai/clip-vit-large-patch14": 768,
}
"""`hidden_size` of encoders, from their configurations on the hub."""


FeatureReader = Callable[[str], Tensor | None]
"""Prompt -> features (n, dim) of its n tokens, or None if they are not cached."""


class KnownFeatures(NamedTuple):
    """Cached features of a batch of prompts."""

    rows: Float[Tensor, "b n d"]
    """Features, padded with zeros, in the dtype of the cache."""
    lengths: Sequence[int]
    """Number of tokens of each prompt; -1 for a prompt without cached features."""

    @classmethod
    def of(cls, features: Sequence[Tensor | None]) -> KnownFeatures | None:
        """Pad the features (n, dim) of prompts. None if no prompt has features."""
        known = [rows for rows in features if rows is not None]
        if not known:
            return None
        longest = max(map(len, known))
        padded = known[0].new_zeros(len(features), longest, known[0].shape[1])
        for i, rows in enumerate(features):
            if rows is not None:
                padded[i, : len(rows)] = rows
        return cls(padded, [-1 if rows is None else len(rows) for rows in features])


class TextEncoder(nn.Module, ABC):
    """Prompts -> features (B, S, dim) and a mask (B, S) that is True for words, with fixed S = `num_tokens`."""

    dim: int
    num_tokens: int
    vocab_size: int | None = None
    """Number of word ids, if the features are ids (B, S), which the model embeds itself."""

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        """Raises UserError for a prompt that is too long, unless the encoder may cut it."""

    def reader(self) -> FeatureReader | None:
        """A reader of cached features for the processes that load data. None: the encoder has no cache.

        Its rows are later given to `forward` as `known`.
        """
        return None

    @classmethod
    def shape_of(cls, options: Mapping[str, Any]) -> TextShape | None:
        """What is known of an encoder with these constructor arguments without its files.

        None: the encoder has no files and can be built. For `arvid plan`.
        """
        return None


@dataclass(frozen=True)
class TextShape:
    """The attributes of a `TextEncoder` that a network is built by."""

    dim: int
    num_tokens: int
    vocab_size: int | None = None


class WordTextEncoder(TextEncoder):
    """Trainable encoder of hashed words, for captions with few different words. It needs no vocabulary or download.

    The embedding of a word is the sum of `NUM_HASHES` rows of a table, selected by hashes of its spelling (Bloom
    embeddings, arXiv 1706.03993), so two words rarely share all rows. Transformer blocks then mix the words of a
    prompt. Case is ignored, and a punctuation mark is a word. Words outside the training data mean nothing to it: for
    natural language, use a pretrained encoder.

    Args:
        dim: width of the features.
        max_words: maximum number of words in a prompt.
        depth: transformer blocks.
        num_rows: rows of the table.
    """

    NUM_HASHES = 2

    def __init__(
        self, *, dim: int = 128, max_words: int = 32, depth: int = 1, num_rows: int = 1024
    ) -> None:
        super().__init__()
        at_least(1).require("text.", dim=dim, max_words=max_words, num_rows=num_rows)
        at_least(0).require("text.", depth=depth)
        self.dim = dim
        self.num_tokens = max_words
        self.table = nn.Embedding(num_rows, dim)
        self.position = nn.Parameter(torch.randn(max_words, dim) * 0.1)
        self.mixer = Transformer(dim, depth, num_heads=max(dim // 64, 1), norm="pre")
        self.norm = nn.LayerNorm(dim)

    def forward(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        rows = [self._rows(prompt) for prompt in prompts]
        padded = [row + [[-1] * self.NUM_HASHES] * (self.num_tokens - len(row)) for row in rows]
        ids = torch.tensor(padded, device=self.position.device)  # (B, S, NUM_HASHES)
        mask = ids[..., 0] >= 0
        words = self.table(ids.clamp_min(0)).sum(2) * mask[..., None]
        return self.norm(self.mixer(words + self.position)), mask

    def _rows(self, prompt: str) -> list[list[int]]:
        """The table rows of each word."""
        words = re.findall(r"\w+|[^\w\s]", prompt.casefold())
        if len(words) > self.num_tokens:
            raise UserError(
                f"The prompt {prompt[:40]!r}… has {len(words)} words; this model was built for at "
                f"most {self.num_tokens}. Shorten it, or train with a larger max_words."
            )
        return [
            [
                crc32(f"{i} {word}".encode()) % self.table.num_embeddings
                for i in range(self.NUM_HASHES)
            ]
            for word in words
        ]


class HuggingFaceTextEncoder(TextEncoder):
    """A frozen encoder of the transformers library: its last hidden states, padded with zeros.

    The weights are loaded for the first prompt, in their stored precision. They are not part of the module's state
    (`name` identifies them), and copies of the module share them.

    Args:
        name: hub name or local folder. Remote code is never run.
        tokenizer: name or folder of its tokenizer, if it differs from `name`.
        num_tokens: length to which prompts are padded on the right.
        truncate: cut longer prompts with a warning, instead of refusing them.
        cache: cache the features of prompts on disk (in `cache_dir()`), rounded to float16. If all captions are cached,
            training does not load the encoder.
    """

    _device: Tensor

    def __init__(
        self,
        name: str,
        *,
        tokenizer: str | None = None,
        num_tokens: int = NUM_TOKENS,
        truncate: bool = False,
        cache: bool = False,
    ) -> None:
        super().__init__()
        at_least(1).require("text.", num_tokens=num_tokens)
        from transformers import AutoConfig, AutoTokenizer  # slow to import

        with _readable_errors(name):
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or name)
            config = AutoConfig.from_pretrained(name)
        self.name = name
        self.dim = int(config.hidden_size)
        self.num_tokens = num_tokens
        self.truncate = truncate
        self.cache = _FeatureCache([_identity(name), config.to_dict()], self.dim) if cache else None
        self._frozen = _Frozen()
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @classmethod
    def shape_of(cls, options: Mapping[str, Any]) -> TextShape:
        """The width comes from a local folder's configuration or from `WIDTHS`. Raises UserError for other names."""
        name = options["name"]
        config = Path(name) / "config.json"
        if config.is_file():
            dim = int(json.loads(config.read_text())["hidden_size"])
        elif name in WIDTHS:
            dim = WIDTHS[name]
        else:
            raise UserError(
                f"The width of the text encoder {name!r} is not known without its files: give a local folder with its "
                f"config.json. Known: {', '.join(WIDTHS)}."
            )
        return TextShape(dim, int(options.get("num_tokens", NUM_TOKENS)))

    @property
    def model(self) -> nn.Module:
        """The encoder, on this module's device. Raises UserError if its weights are missing."""
        if self._frozen.model is None:
            self._frozen.model = _load(self.name)
        return self._frozen.model.to(self._device.device)

    def reader(self) -> FeatureReader | None:
        if self.cache is None:
            return None
        limit = self.num_tokens if self.truncate else None
        return _CacheReader(self.tokenizer, limit, self.cache)

    @torch.no_grad()
    def forward(
        self, prompts: Sequence[str], known: KnownFeatures | None = None
    ) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        features = self._features([self._ids(prompt) for prompt in prompts], known)
        padded = self._device.new_zeros(len(prompts), self.num_tokens, self.dim)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool, device=padded.device)
        for i, rows in enumerate(features):
            padded[i, : len(rows)] = rows
            mask[i, : len(rows)] = True
        return padded, mask

    def _ids(self, prompt: str) -> tuple[int, ...]:
        ids = self.tokenizer(prompt)["input_ids"]
        if len(ids) <= self.num_tokens:
            return tuple(ids)
        if not self.truncate:
            raise UserError(
                f"The prompt {prompt[:40]!r}… has {len(ids)} tokens; "
                f"this model was built for at most {self.num_tokens}. Shorten it."
            )
        logger.warning(
            "The prompt %r… has %d tokens: only the first %d are used.",
            prompt[:40],
            len(ids),
            self.num_tokens,
        )
        cut = self.tokenizer(prompt, truncation=True, max_length=self.num_tokens)
        return tuple(cut["input_ids"])

    def _features(
        self, prompts: list[tuple[int, ...]], known: KnownFeatures | None
    ) -> list[Tensor]:
        """Features (n, dim) of each prompt's n tokens; n may be 0."""
        if self.cache is None:
            return self._encode(prompts)
        found: dict[tuple[int, ...], Tensor | None] = {}
        if known is not None:
            given = zip(prompts, known.rows, known.lengths, strict=True)
            found = {ids: rows[:length] for ids, rows, length in given if length >= 0}
        found = {ids: found[ids] if ids in found else self.cache.read(ids) for ids in prompts}
        missing = [ids for ids, rows in found.items() if rows is None]
        # Rounded as in the cache, so that results do not depend on what the cache holds already.
        encoded = {
            ids: rows.half() for ids, rows in zip(missing, self._encode(missing), strict=True)
        }
        self.cache.write(encoded)
        found.update(encoded)
        return [rows for ids in prompts if (rows := found[ids]) is not None]

    def _encode(self, prompts: list[tuple[int, ...]]) -> list[Tensor]:
        length = max(map(len, prompts), default=0)
        if length == 0:
            return [self._device.new_empty(0, self.dim) for _ in prompts]
        ids = [[*prompt, *[0] * (length - len(prompt))] for prompt in prompts]
        # At least one visible token: a softmax must not be empty.
        visible = [[1] * max(len(prompt), 1) for prompt in prompts]
        mask = [[*ones, *[0] * (length - len(ones))] for ones in visible]
        model, device = self.model, self._device.device
        with torch.autocast(device.type, enabled=False):  # features must not depend on the caller
            states = model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
            ).last_hidden_state.float()
        return [rows[: len(prompt)] for rows, prompt in zip(states, prompts, strict=True)]


class _Frozen:
    """Holds a network outside its owner's state. Copies of the owner share it."""

    model: nn.Module | None = None

    def __deepcopy__(self, memo: object) -> _Frozen:
        return self


class _FeatureCache:
    """Features of prompts on disk in float16: packs for each encoder (see `arvid.packs`).

    Earlier versions wrote a file for each prompt. Such files are still read. A prompt with damaged features is encoded
    again, with a warning.
    """

    def __init__(self, encoder: Any, dim: int) -> None:
        self.folder = cache_dir() / "text" / sha256_json(encoder)[:24]
        self.dim = dim
        self.packs = Packs(self.folder / "packs")
        self._is_writable = True

    def read(self, ids: tuple[int, ...]) -> Tensor | None:
        """Features (n, dim) of a prompt's n tokens, or None."""
        try:
            content = self.packs.read(_key(ids))
        except (OSError, Damaged) as error:
            logger.warning("%s: the prompt is encoded again.", error)
            return None
        if content is None:
            return self._read_file(sha256_json(ids))
        rows = np.frombuffer(content, np.float16).reshape(-1, self.dim)
        return torch.from_numpy(rows.copy())

    def _read_file(self, digest: str) -> Tensor | None:
        path = self.folder / digest[:2] / f"{digest[2:]}.safetensors"
        if not path.is_file():
            return None
        try:
            return load_tensors(path)[0]["features"]
        except (OSError, Damaged) as error:
            logger.warning("%s is damaged (%s): the prompt is encoded again.", path, error)
            return None

    def write(self, features: Mapping[tuple[int, ...], Tensor]) -> None:
        """Store the features (float16) of prompts. If that fails, warn once and store nothing from then on."""
        if not self._is_writable:
            return
        values = {_key(ids): rows.cpu().numpy().tobytes() for ids, rows in features.items()}
        try:
            self.packs.write(values)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            self._is_writable = False
            logger.warning(
                "%s cannot be written (%s), so prompts are encoded again. Set ARVID_CACHE to another folder.",
                self.folder,
                error,
            )


@dataclass(frozen=True)
class _CacheReader:
    """A `FeatureReader` without the encoder's weights. It can be sent to another process."""

    tokenizer: Any
    limit: int | None
    """Length to which prompts are cut."""
    cache: _FeatureCache

    def __call__(self, prompt: str) -> Tensor | None:
        cut = {} if self.limit is None else {"truncation": True, "max_length": self.limit}
        return self.cache.read(tuple(self.tokenizer(prompt, **cut)["input_ids"]))


def _key(ids: tuple[int, ...]) -> bytes:
    return bytes.fromhex(sha256_json(ids))[:KEY_BYTES]


def _load(name: str) -> nn.Module:
    from transformers import AutoModel

    with _readable_errors(name):
        model = AutoModel.from_pretrained(name, dtype="auto")
    encoder: nn.Module = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder.requires_grad_(False).eval()


def _identity(name: str) -> Any:
    """Identity of an encoder's weights: its hub name, or names, sizes and times of the files in a local folder."""
    if not Path(name).is_dir():
        return name
    files = sorted(path for path in Path(name).iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    """Turn transformers' errors about an unreadable encoder into UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"No text encoder at {name!r}: give a local folder, or a hub name that is downloaded "
            f"or can be downloaded. ({str(error).splitlines()[0]})"
        ) from error
