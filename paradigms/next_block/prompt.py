"""Prompts as ids of a LLaMA tokenizer. NBP's released text models have these ids in their own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from arvid.contracts import UserError
from arvid.nn.text import TextEncoder, TextShape
from arvid.ranges import at_least

FILE = "tokenizer.json"
NUM_IDS = 32_000
"""Ids of the tokenizer of LLaMA 1 and 2."""
BEGIN, END = "<s>", "</s>"


class LlamaPrompt(TextEncoder):
    """Prompts -> ids (B, S): begin token, prompt, then end tokens as padding on the right.

    For UCF-101 the prompt is the class name: "apply eye makeup" is [1, 3394, 10977, 1207, 786, 2, 2, 2].

    Args:
        tokenizer: `tokenizer.json` of LLaMA 1 or 2, or its folder.
        num_tokens: S; 8 in the release, where no class of UCF-101 has more than 7.

    Raises UserError if the file does not exist.
    """

    def __init__(self, tokenizer: str, *, num_tokens: int = 8) -> None:
        super().__init__()
        at_least(1).require("text.", num_tokens=num_tokens)
        from tokenizers import Tokenizer

        path = Path(tokenizer)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file. Give the {FILE} of LLaMA 2's tokenizer: it comes with "
                "meta-llama/Llama-2-7b on the hub, and with the repository RenShuhuai-Andy/NBP."
            )
        self.tokenizer = Tokenizer.from_file(str(path))
        self.dim = 0
        self.num_tokens = num_tokens
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.begin, self.end = (self._id(name, path) for name in (BEGIN, END))
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @classmethod
    def shape_of(cls, options: Mapping[str, Any]) -> TextShape:
        return TextShape(0, int(options.get("num_tokens", 8)), vocab_size=NUM_IDS)

    def _id(self, name: str, path: Path) -> int:
        found: int | None = self.tokenizer.token_to_id(name)
        if found is None:
            raise UserError(f"{path}: not a LLaMA tokenizer, because it has no {name}.")
        return found

    def forward(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]]:
        rows = [self._ids(prompt) for prompt in prompts]
        padded = [row + [self.end] * (self.num_tokens - len(row)) for row in rows]
        lengths = torch.tensor([[len(row)] for row in rows])
        mask = torch.arange(self.num_tokens) < lengths
        device = self.get_buffer("_device").device
        return torch.tensor(padded, device=device), mask.to(device)

    def _ids(self, prompt: str) -> list[int]:
        ids = [self.begin, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
        if len(ids) > self.num_tokens:
            raise UserError(
                f"The prompt {prompt[:40]!r} has {len(ids)} tokens, including the begin token; this model was "
                f"built for at most {self.num_tokens}. Shorten it."
            )
        return ids
