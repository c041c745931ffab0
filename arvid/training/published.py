"""Published generators: one safetensors file with the weights, the tokenizer and the description of the run.

It holds what sampling and scoring need of a checkpoint: no state of the optimiser. Nothing in it is unpickled, and its
checksum is verified when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from arvid.errors import UserError
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors
from arvid.training.keys import CHECKPOINT_KEY, TOKENIZER_KEY

FORMAT = "arvid generator 1"


def write_published(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the generator of a checkpoint (see `arvid.training.checkpoint_io.read_checkpoint`)."""
    throughput = checkpoint.get("callbacks", {}).get("Throughput", {})
    metadata = {
        "format": FORMAT,
        CHECKPOINT_KEY: checkpoint[CHECKPOINT_KEY],
        TOKENIZER_KEY: json.dumps(checkpoint[TOKENIZER_KEY]),
        "global_step": str(checkpoint.get("global_step", 0)),
        "seconds": str(throughput.get("seconds", 0.0)),
    }
    save_tensors(path, checkpoint["state_dict"], metadata)


def read_published(path: Path) -> dict[str, Any]:
    """The generator in the form of a checkpoint. Raises UserError if the file is damaged or of another kind."""
    try:
        if not is_published(path):
            raise UserError(f"{path}: is not a generator that `arvid push` has written.")
        tensors, metadata = load_tensors(path)
        return {
            "state_dict": tensors,
            CHECKPOINT_KEY: metadata[CHECKPOINT_KEY],
            TOKENIZER_KEY: json.loads(metadata[TOKENIZER_KEY]),
            "global_step": int(metadata["global_step"]),
            "callbacks": {"Throughput": {"seconds": float(metadata["seconds"])}},
        }
    except Damaged as error:
        raise UserError(f"{path} is damaged: {error}. Take another copy of it.") from error
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a generator that can be read ({error}).") from error


def is_published(path: Path) -> bool:
    """Whether a safetensors file says that it is a published generator. Raises SafetensorError and OSError."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT
