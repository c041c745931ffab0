"""Published models in the layout of diffusers: a folder with `config.json` and one file of weights.

A source is a local folder or a hub name `organisation/name`, optionally with a pipeline's subfolder:
`Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae`. Hub names use the cache of huggingface_hub, which downloads missing files unless
HF_HUB_OFFLINE is set. Weights are a safetensors file. A local folder may instead have a file of `torch.save`, which is
read without running code in it.
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
from safetensors.torch import save_file
from torch import Tensor

from arvid.contracts import UserError
from arvid.files import atomic_write, write_json
from arvid.importing import read_weights

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"
_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w./-]+))?")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in older files (diffusers before 0.15) -> current names."""


def read_config(source: str) -> dict[str, Any]:
    """A model's configuration. Raises UserError if it cannot be read or is not a configuration."""
    path = _locate(source, CONFIG)
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UserError(f"{path}: not the configuration of a diffusers model: no _class_name.")
    return config


def read_tensors(source: str) -> dict[str, Tensor]:
    """A model's weights by name, on the CPU. Raises UserError if they are missing or cannot be read."""
    tensors = read_weights(locate_weights(source))
    return {_new_name(name): value for name, value in tensors.items()}


def locate_weights(source: str) -> Path:
    """The file of a model's weights. Raises UserError with instructions if it is missing."""
    pickled = Path(source).expanduser() / PICKLED_WEIGHTS
    if pickled.is_file() and not pickled.with_name(WEIGHTS).is_file():
        return pickled
    return _locate(source, WEIGHTS)


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, half: bool = False
) -> None:
    """Write a model's configuration and weights for `read_config` and `read_tensors`.

    `half` stores the weights in fp16.
    """
    dtype = torch.float16 if half else torch.float32
    write_json(folder / CONFIG, config)
    with atomic_write(folder / WEIGHTS) as temporary:
        values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        save_file({k: v.cpu().contiguous() for k, v in values.items()}, temporary)


def _new_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_ATTENTION.get(part, part) for part in parts]
    return ".".join(parts)


def _locate(source: str, file: str) -> Path:
    """A file of the source. Raises UserError with instructions if it is missing."""
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
        raise UserError(f"{source!r} is neither a folder nor a name on the hub.")
    name, subfolder = match.groups()
    try:
        return Path(hf_hub_download(name, file, subfolder=subfolder))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        place = f"https://huggingface.co/{name}/tree/main" + (f"/{subfolder}" if subfolder else "")
        raise UserError(
            f"There is no folder {source!r}, and {file} of {name!r} on the hub is not in the local cache and cannot be "
            f"downloaded ({str(error).strip().splitlines()[0]}). Download {CONFIG} and {WEIGHTS} from {place} into "
            "one folder, and give that folder instead."
        ) from error
