"""Converts released NOVA pipelines to arvid's checkpoints and back: `arvid import nova`, `arvid export nova`.

A folder such as https://huggingface.co/BAAI/nova-d48w1024-osp480 has `transformer`, `vae`, `scheduler`, `text_encoder`
and `tokenizer`. The checkpoint contains transformer and VAE. The text encoder (five gigabytes, frozen) is read from the
folder. The folder's code (`__transformer__.py` and so on) is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arvid import hub
from arvid.contracts import UserError
from arvid.files import sha256_file, write_json
from arvid.importing import Imported, Move, match, read_checkpoint, read_weights
from arvid.nn.heads.diffusion import DiffusionHead
from arvid.nn.heads.diffusion_process import Process, diffusers_scheduler
from arvid.paradigms.nova.paradigm import NOVA
from arvid.paradigms.nova.pipeline_index import (
    INDEX,
    SCHEDULER_CONFIG,
    link_text_encoder,
    write_index,
)
from arvid.paradigms.nova.published import (
    Published,
    from_published,
    read_config,
    to_published,
    write_config,
)
from arvid.training.export import load_tokenizer
from arvid.training.generator_file import save_generator
from arvid.training.generator_module import load_generator

VIDEO_VAE = "AutoencoderKLOpenSora"
"""Class of the video model's VAE, which is not in diffusers. All other VAEs are."""
SAMPLING = {"guidance": 5.0, "diffusion_steps": 25}
"""Defaults of the released pipeline."""
UNUSED_TEXT_WEIGHTS = ("lm_head.", "rotary_emb.inv_freq")


@runtime_checkable
class PublishedTokenizer(Protocol):
    """A published tokenizer that can be written in the layout of diffusers."""

    def to_published(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights."""
        ...


def import_file(
    folder: Path, out: Path, *, tokenizer: Path | None = None, text: Path | None = None
) -> Imported:
    """Write the released pipeline in `folder` as a checkpoint that `load_generator` reads.

    Args:
        folder: folder of the pipeline.
        out: file to write.
        tokenizer: a tokenizer of arvid to use instead of the folder's VAE; it must have the same number of channels.
        text: another folder of the text encoder, with its tokenizer.

    Raises UserError with the missing or unfit part: a subfolder, a class, an option, or tensors.
    """
    process = _read_scheduler(_json(folder, "scheduler", SCHEDULER_CONFIG))
    try:
        published = read_config(_json(folder, "transformer", hub.CONFIG), **process)
    except UserError as error:
        raise UserError(f"{folder / 'transformer' / hub.CONFIG}: {error}") from error
    video = load_tokenizer(tokenizer or _vae(folder))
    file = hub.locate_weights(str(folder / "transformer"))
    tensors = read_weights(file)
    with torch.device("meta"):  # only names and shapes: the weights come from the file
        net = published.build(video.spec)
    try:
        state, moves = from_published(tensors, net)
    except UserError as error:
        raise UserError(f"{file}: not the transformer of its {hub.CONFIG}: {error}") from error
    encoder, others = _text_encoder(folder, text, published)
    save_generator(
        out,
        config=_config(published, encoder),
        tensors={f"paradigm.{name}": value for name, value in state.items()},
        tokenizer=video,
        record={"imported": "nova", "folder": folder.name, "sha256": sha256_file(file)},
    )
    return Imported(moves + others, unused=[])


def export_file(checkpoint: Path, out: Path, *, half: bool = False) -> list[str]:
    """Write a folder in the layout of a released pipeline; returns its parts.

    `transformer`, `scheduler`, `model_index.json` and, for a published tokenizer, `vae` are written. `text_encoder`
    and `tokenizer` are links to the folders that the model reads. `half` stores weights in fp16, as the released
    transformers have.

    Raises UserError for a checkpoint of another paradigm, and for options that the release does not have.
    """
    model = load_generator(checkpoint)
    net = model.paradigm
    if not isinstance(net, NOVA):
        raise UserError(f"{checkpoint}: is a {type(net).__name__}, not NOVA.")
    try:
        tensors = to_published(net)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    assert isinstance(net.head, DiffusionHead)  # to_published refuses others
    parts = {"transformer": (write_config(net), tensors)}
    if isinstance(model.tokenizer, PublishedTokenizer):
        parts["vae"] = model.tokenizer.to_published()
    for name in (*parts, "scheduler"):
        if (out / name).is_symlink():  # it may lead to a published folder, which must not change
            raise UserError(f"{out / name} is a link: remove it, so nothing is written there.")
    write_json(out / "scheduler" / SCHEDULER_CONFIG, _scheduler_config(net.head))
    for name, (config, weights) in parts.items():
        hub.write_model(out / name, config, weights, half=half)
    links = link_text_encoder(out, model.description["config"].get("text"))
    write_index(out)
    return [*parts, "scheduler", INDEX, *(f"{name} (a link)" for name in links)]


def _config(published: Published, text: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a GeneratorModule as plain data."""
    size = published.size
    return {
        "paradigm": {
            "class_path": "arvid.paradigms.nova.NOVA",
            "init_args": published.options,
        },
        "token_type": "continuous",
        "size": {
            "name": size.name,
            "dim": size.dim,
            "depth": size.depth,
            "num_heads": size.num_heads,
            "head_dim": size.head_dim,
            "head_depth": size.head_depth,
        },
        "clip_shape": list(published.clip_shape),
        "text": text,
        "label": "label" in published.context.conditions,
        "num_classes": published.context.conditions.get("label", 0),
        "motion": "motion" in published.context.conditions,
        "sampling": SAMPLING,
    }


def _json(folder: Path, subfolder: str, name: str) -> dict[str, Any]:
    path = folder / subfolder / name
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    if not path.is_file():
        raise UserError(
            f"{folder} has no {subfolder}/{name}: download the whole folder, or copy it from a published one."
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    return found


def _vae(folder: Path) -> str:
    name = _json(folder, "vae", hub.CONFIG).get("_class_name")
    return f"{'open_sora_plan' if name == VIDEO_VAE else 'pretrained'}:{folder / 'vae'}"


# Scheduler

_KNOWN: dict[str, tuple[Any, tuple[str, ...]]] = {
    "DDPMScheduler": (
        DDPMScheduler,
        (
            "num_train_timesteps",
            "beta_schedule",
            "trained_betas",
            "variance_type",
            "clip_sample",
            "prediction_type",
            "thresholding",
            "timestep_spacing",
            "steps_offset",
            "rescale_betas_zero_snr",
        ),
    ),
    "FlowMatchEulerDiscreteScheduler": (
        FlowMatchEulerDiscreteScheduler,
        (
            "num_train_timesteps",
            "use_dynamic_shifting",
            "invert_sigmas",
            "shift_terminal",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "stochastic_sampling",
        ),
    ),
}
"""Scheduler -> its class in diffusers, and the options that must have arvid's values."""


def _read_scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments `process` and `shift` of `read_config`. Raises UserError for a scheduler that arvid does not have."""
    name = config.get("_class_name")
    if name not in _KNOWN:
        raise UserError(
            f"The scheduler is a {name!r}; supported are {' and '.join(_KNOWN)} (see {SCHEDULER_CONFIG})."
        )
    cls, keys = _KNOWN[name]
    process: Process = "ddpm" if name == "DDPMScheduler" else "flow"
    own = diffusers_scheduler(process, 1.0).config
    given = cls.from_config(dict(config)).config
    faults = [
        f"{key} is {given.get(key)!r}, not {own.get(key)!r}"
        for key in keys
        if given.get(key) != own.get(key)
    ]
    if faults:
        raise UserError(f"The {name} is not one that NOVA was trained with: {'; '.join(faults)}.")
    return {"process": process, "shift": given.get("shift", 1.0) if process == "flow" else 1.0}


def _scheduler_config(head: DiffusionHead) -> dict[str, Any]:
    scheduler = diffusers_scheduler(head.process, head.shift)
    keys = ["shift"] if head.process == "flow" else []
    config = {key: scheduler.config[key] for key in (*_KNOWN[type(scheduler).__name__][1], *keys)}
    return {"_class_name": type(scheduler).__name__, **config}


# Text encoder


def _text_encoder(
    folder: Path, other: Path | None, published: Published
) -> tuple[dict[str, Any] | None, list[Move]]:
    """The text encoder as an argument of GeneratorModule, and its tensors, which must all fit its class."""
    if published.context.text_dim is None:
        return None, []
    name, tokenizer = (other, other) if other else (folder / "text_encoder", folder / "tokenizer")
    if other is None:
        _json(folder, "text_encoder", hub.CONFIG)
        _json(folder, "tokenizer", "tokenizer_config.json")
    arguments = {
        "name": str(name.resolve()),
        "tokenizer": str(tokenizer.resolve()),
        "num_tokens": published.context.text_len,
        "truncate": True,
    }
    return {
        "class_path": "arvid.nn.text.HuggingFaceTextEncoder",
        "init_args": arguments,
    }, _text_moves(name, published.context.text_dim)


def _text_moves(folder: Path, dim: int) -> list[Move]:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no text encoder of transformers ({error}).") from error
    if config.hidden_size != dim:
        raise UserError(
            f"{folder}: its features have {config.hidden_size} numbers, but the transformer needs {dim}."
        )
    with torch.device("meta"):
        own = AutoModel.from_config(config).state_dict()
    shapes = {
        name: value
        for name, value in _text_shapes(folder).items()
        if not any(part in name for part in UNUSED_TEXT_WEIGHTS)
    }
    prefix = "model." if all(name.startswith("model.") for name in shapes) else ""
    try:
        _, moves = match(shapes, own, {name: prefix + name for name in own})
    except UserError as error:
        raise UserError(f"{folder}: not the text encoder of its {hub.CONFIG}: {error}") from error
    return [Move(move.source, move.shape, f"text encoder: {move.target}") for move in moves]


def _text_shapes(folder: Path) -> dict[str, Tensor]:
    """The weights' shapes as tensors on the meta device, so the weights (gigabytes) need not be read."""
    shapes: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    shapes[key] = torch.empty(opened.get_slice(key).get_shape(), device="meta")
        except SafetensorError as error:
            raise UserError(f"{file}: not a safetensors file ({error}).") from error
    if not shapes:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            shapes |= {key: value.to("meta") for key, value in read_checkpoint(file).items()}
    if not shapes:
        raise UserError(f"{folder} has neither *.safetensors nor pytorch_model*.bin.")
    return shapes
