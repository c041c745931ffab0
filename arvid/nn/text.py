"""Text encoders: a small trainable one over bytes, and any Hugging Face encoder, frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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


class ByteTextEncoder(TextEncoder):
    """Trainable encoder over UTF-8 bytes, for captions of a small world.

    Bytes are embedded, joined to words by two convolutions, thinned to every `stride`-th position and
    mixed by transformer blocks. No vocabulary, no download.

    Args:
        dim: width of the features.
        max_bytes: longest prompt; a multiple of `stride`.
        depth: transformer blocks.
        stride: bytes per text token, an even number.
    """

    def __init__(
        self, *, dim: int = 128, max_bytes: int = 128, depth: int = 2, stride: int = 4
    ) -> None:
        super().__init__()
        if stride % 2 or max_bytes % stride:
            raise UserError(
                f"The stride {stride} must be even, and max_bytes {max_bytes} a multiple of it."
            )
        self.dim = dim
        self.max_bytes = max_bytes
        self.stride = stride
        self.num_tokens = max_bytes // stride
        self.embed = nn.Embedding(257, dim, padding_idx=256)
        self.words = nn.Conv1d(dim, dim, 5, padding=2)
        self.thin = nn.Conv1d(dim, dim, 2 * stride, stride=stride, padding=stride // 2)
        self.position = nn.Parameter(torch.randn(self.num_tokens, dim) * 0.02)
        self.mixer = Transformer(dim, depth, num_heads=max(dim // 64, 1), norm="pre")
        self.norm = nn.LayerNorm(dim)

    def forward(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        ids = self._bytes(prompts).to(self.position.device)  # (B, max_bytes)
        x = self.embed(ids).transpose(1, 2)
        x = x + nn.functional.gelu(self.words(x))
        x = self.thin(x)[..., : self.num_tokens].transpose(1, 2) + self.position  # (B, S, D)
        mask = (ids != 256).view(len(ids), self.num_tokens, self.stride).any(-1)
        return self.norm(self.mixer(x)), mask

    def _bytes(self, prompts: Sequence[str]) -> Tensor:
        ids = torch.full((len(prompts), self.max_bytes), 256)
        for row, prompt in zip(ids, prompts, strict=True):
            code = prompt.encode()
            if len(code) > self.max_bytes:
                raise UserError(
                    f"The prompt {prompt[:40]!r}… has {len(code)} bytes; this model was built for at "
                    f"most {self.max_bytes}. Shorten it, or train with a larger max_bytes."
                )
            row[: len(code)] = torch.tensor(list(code), dtype=row.dtype)
        return ids


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
