"""Text encoders: a small trainable one over words, and any Hugging Face encoder, frozen."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from zlib import crc32

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.nn.attention import Transformer


class TextEncoder(nn.Module, ABC):
    """Prompts -> features (B, S, dim) and a mask that is True on words, with a fixed S = `num_tokens`."""

    dim: int
    num_tokens: int

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        """Raises UserError for a prompt that is too long, rather than cutting it."""


class WordTextEncoder(TextEncoder):
    """Trainable encoder over hashed words, for captions of a small world. No vocabulary, no download.

    A word is the sum of `NUM_HASHES` rows of one table, chosen by as many hashes of its spelling (Bloom embeddings,
    arXiv 1706.03993), so that two words hardly ever share them all; transformer blocks then mix the words of a prompt.
    Case is ignored, and a punctuation mark is a word. Words that training never showed mean nothing to it: for real
    language use a pretrained encoder.

    Args:
        dim: width of the features.
        max_words: longest prompt.
        depth: transformer blocks.
        num_rows: rows of the table.
    """

    NUM_HASHES = 2

    def __init__(
        self, *, dim: int = 128, max_words: int = 32, depth: int = 1, num_rows: int = 1024
    ) -> None:
        super().__init__()
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
    """A frozen encoder of the transformers library: its last hidden states.

    Args:
        name: hub name or local folder (weights and tokenizer). Never runs remote code.
        num_tokens: prompts are padded to this length on the right.
    """

    def __init__(self, name: str, *, num_tokens: int = 256) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer  # heavy: only where it is used

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"No text encoder at {name!r}: give a local folder or a hub name that is downloaded "
                f"or can be. ({str(error).splitlines()[0]})"
            ) from error
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.model.requires_grad_(False).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.dim = int(self.model.config.hidden_size)
        self.num_tokens = num_tokens

    def train(self, mode: bool = True) -> HuggingFaceTextEncoder:
        super().train(mode)
        self.model.eval()  # frozen: its dropout stays off
        return self

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        lengths = [len(ids) for ids in self.tokenizer(list(prompts))["input_ids"]]
        if max(lengths) > self.num_tokens:
            prompt = prompts[lengths.index(max(lengths))]
            raise UserError(
                f"The prompt {prompt[:40]!r}… has {max(lengths)} tokens; "
                f"this model was built for at most {self.num_tokens}. Shorten it."
            )
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.num_tokens, return_tensors="pt"
        ).to(self.model.device)
        mask = batch["attention_mask"]
        features = self.model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return features, mask.bool()
