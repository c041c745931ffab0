"""Writes generators that arvid did not train as files that `load_generator` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arvid.contracts import VideoTokenizer
from arvid.training.checkpoint_io import save_checkpoint
from arvid.training.export import describe
from arvid.training.keys import CHECKPOINT_KEY, TOKENIZER_KEY
from arvid.training.setting import describe_imported


def save_generator(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: VideoTokenizer,
    record: Mapping[str, Any],
) -> None:
    """Write a checkpoint of a generator and its tokenizer.

    Args:
        path: file to write.
        config: arguments of GeneratorModule as plain data, without `tokenizers`.
        tensors: state of the module without its tokenizer; names begin with "paradigm." or "conditioner.".
        tokenizer: stored in the file too.
        record: origin of the generator.
    """
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    checkpoint = {
        "state_dict": {**state, **{name: t.contiguous() for name, t in tensors.items()}},
        TOKENIZER_KEY: describe(tokenizer),
        CHECKPOINT_KEY: json.dumps(describe_imported(config, record)),
    }
    save_checkpoint(checkpoint, path)
