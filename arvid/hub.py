"""Published models as diffusers lays them out: a folder with `config.json` and one file of weights.

A source is a local folder or a hub name, `organisation/name`, with `/subfolder` behind it where a pipeline keeps
the model in one: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae`. Hub names go through the cache of huggingface_hub, which
downloads what is not there yet unless HF_HUB_OFFLINE is set. Weights are a safetensors file; in a local folder they may
also be one of `torch.save`, which is read without running code in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arvid.contracts import UserError
from arvid.files import atomic_write, write_json
from arvid.importing import read_checkpoint

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"
_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w./-]+))?")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called an attention's layers before 0.15; files of that time keep the names."""


def read_config(source: str) -> dict[str, Any]:
    """A model's configuration. Raises UserError where it cannot be had or is none."""
    path = _locate(source, CONFIG)
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UserError(f"{path}: not the configuration of a model of diffusers: no _class_name.")
    return config


def read_tensors(source: str) -> dict[str, Tensor]:
    """A model's weights by name, on the CPU. Raises UserError where they cannot be had or read."""
    tensors = read_weights(locate_weights(source))
    return {_new_name(name): value for name, value in tensors.items()}


def locate_weights(source: str) -> Path:
    """The file of a model's weights. Raises UserError that says what to get and where to put it."""
    pickled = Path(source).expanduser() / PICKLED_WEIGHTS
    if pickled.is_file() and not pickled.with_name(WEIGHTS).is_file():
        return pickled
    return _locate(source, WEIGHTS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of either kind, by its suffix. Raises UserError for a file that cannot be read safely."""
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}).") from error


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, half: bool = False
) -> None:
    """Write a model's configuration and weights where `read_config` and `read_tensors` find them.

    `half` stores the weights in fp16.
    """
    dtype = torch.float16 if half else torch.float32
    write_json(folder / CONFIG, config)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({k: v.to("cpu", dtype).contiguous() for k, v in tensors.items()}, temporary)


def _new_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_ATTENTION.get(part, part) for part in parts]
    return ".".join(parts)


def _locate(source: str, file: str) -> Path:
    """A file of the source. Raises UserError that says what to get and where to put it."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / file).is_file():
            return folder / file
        raise UserError(
            f"{folder} has no {file}. A model's folder (in a pipeline a subfolder, as vae or transformer) holds "
            f"{CONFIG} and {WEIGHTS} or {PICKLED_WEIGHTS}."
        )
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise UserError(f"There is no folder {source!r}, nor is that a name on the hub.")
    name, subfolder = match.groups()
    try:
        return Path(hf_hub_download(name, file, subfolder=subfolder))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        place = f"https://huggingface.co/{name}/tree/main" + (f"/{subfolder}" if subfolder else "")
        raise UserError(
            f"There is no folder {source!r}, and {file} of the hub's {name!r} is neither in the local cache nor to be "
            f"downloaded ({str(error).strip().splitlines()[0]}). Download {CONFIG} and {WEIGHTS} from {place} into "
            "one folder and name that folder instead."
        ) from error
