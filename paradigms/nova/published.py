"""Conversion between the released NOVA transformer (baaivision/NOVA, commit 2cd254a) and arvid's.

Tensors correspond one to one. Only patch embeddings differ in shape: they are strided convolutions (D, C, p, p) in the
release, and linear maps of a patch (D, p·p·C) here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from arvid.contracts import ContextSpec, Size, TokenSpec, UserError
from arvid.importing import Move, match
from arvid.nn.heads import DiffusionOptions
from arvid.nn.heads.diffusion import DiffusionHead
from arvid.nn.heads.diffusion_process import Process
from arvid.paradigms.nova.context import PublishedContext
from arvid.paradigms.nova.paradigm import NOVA

PREFIXES = {
    "context.table": "text_embed.weight",
    "context.text.0.": "text_embed.proj.",
    "context.text.1.": "text_embed.norm.",
    "context.label.": "label_embed.",
    "context.label_norm.": "label_embed.norm.",
    "context.motion.project.": "motion_embed.flow_proj.0.",
    "context.motion.mlp.1.": "motion_embed.flow_proj.2.",
    "context.fps.project.": "motion_embed.fps_proj.0.",
    "context.fps.mlp.1.": "motion_embed.fps_proj.2.",
    "temporal.bov": "mask_embed.bos_token",
    "temporal.patch.": "video_encoder.patch_embed.",
    "temporal.time.0.project.": "video_pos_embed.time_proj.0.",
    "temporal.time.0.mlp.1.": "video_pos_embed.time_proj.2.",
    "temporal.time.1.": "video_pos_embed.norm.",
    "temporal.layers.": "video_encoder.",
    "temporal.scaling_shift.down.": "video_encoder.mixer.lora.",
    "temporal.scaling_shift.up.": "video_encoder.mixer.proj.",
    "temporal.norm.": "video_encoder.norm.",
    "spatial.mask_token": "mask_embed.mask_token",
    "spatial.patch.": "image_encoder.patch_embed.",
    "spatial.encoder.": "image_encoder.",
    "spatial.decoder.": "image_encoder.",  # its blocks are counted on from the encoder's
    "spatial.norm.": "image_encoder.norm.",
    "head.net.embed.": "image_decoder.patch_embed.proj.",
    "head.net.time.": "image_decoder.time_cond_embed.timestep_proj.",
    "head.net.condition.": "image_decoder.time_cond_embed.condition_proj.",
    "head.net.modulation.": "image_decoder.norm.proj.",
    "head.net.": "image_decoder.",
}
"""Prefix in arvid -> prefix in the release. The first that matches is used."""
LAYERS = {
    "encoder.blocks.": {".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."},
    "image_decoder.blocks.": {
        ".modulation.": ".norm1.proj.",
        ".mlp.0.": ".proj.fc1.",
        ".mlp.2.": ".proj.fc2.",
    },
    "time_cond_embed.": {"_proj.0.": "_proj.fc1.", "_proj.2.": "_proj.fc2."},
}
"""Part of a released name -> replacements of layer names in it (arvid -> release)."""
PATCHES = {
    "temporal.patch.proj.weight": 2,
    "spatial.patch.proj.weight": 1,
    "head.net.embed.weight": 1,
}
"""Linear maps that are convolutions in the release -> side of their kernel, in patches of the spatial layers."""
TRAINED_FRAMES = 33
"""Frames of the released video model's training clips (not in its configuration)."""
NUM_CLASSES = 1000


def published_names(net: NOVA) -> dict[str, str]:
    """The released name of each tensor, by arvid's name."""
    depth = len(net.spatial.encoder.blocks)
    return {own: _published_name(own, depth) for own in net.state_dict()}


def _published_name(own: str, encoder_depth: int) -> str:
    prefix = next(p for p in PREFIXES if own.startswith(p))
    name = PREFIXES[prefix] + own.removeprefix(prefix)
    if prefix == "spatial.decoder.":
        name = re.sub(r"\d+", lambda found: str(int(found[0]) + encoder_depth), name, count=1)
    for part, layers in LAYERS.items():
        if part in name:
            for old, new in layers.items():
                name = name.replace(old, new)
    return name


def to_published(net: NOVA) -> dict[str, Tensor]:
    """The tensors in the released form. They share memory with arvid's.

    Raises UserError for a model with options that the release does not have.
    """
    _check_counterpart(net)
    tensors = net.state_dict()
    for own, patches in PATCHES.items():
        side = patches * net.patch
        tensors[own] = rearrange(tensors[own], "d (p q c) -> d c p q", p=side, q=side)
    for own in ("temporal.bov", "spatial.mask_token"):
        tensors[own] = tensors[own][None]
    return {name: tensors[own] for own, name in published_names(net).items()}


def from_published(
    tensors: Mapping[str, Tensor], net: NOVA
) -> tuple[dict[str, Tensor], list[Move]]:
    """Arvid's state dict from released tensors, and the list of moves.

    `net` provides names and shapes; it may be on the meta device. Raises UserError with a list of tensors that do not
    fit.
    """
    names = published_names(net)
    linear = dict(tensors)
    for own in PATCHES:
        weight = tensors.get(names[own])
        if weight is not None and weight.ndim == 4:
            linear[names[own]] = rearrange(weight, "d c p q -> d (p q c)")
    state, moves = match(linear, net.state_dict(), names)
    return state, [replace(move, shape=tuple(tensors[move.source].shape)) for move in moves]


def _check_counterpart(net: NOVA) -> None:
    released = {
        "its tokens are discrete": net.spec.type == "continuous",
        "its null tokens are learned": isinstance(net.context, PublishedContext),
        "it has no temporal autoregression": net.tam,
        "its norms are not on the branches": net.norm == "branch",
    }
    faults = [fault for fault, holds in released.items() if not holds] or _unlike_its_config(net)
    if faults:
        raise UserError(f"The released NOVA code has no such model: {'; '.join(faults)}.")


def _unlike_its_config(net: NOVA) -> list[str]:
    """Differences between a model and the one that `write_config` describes. The release has no options for them."""
    try:
        published = read_config(write_config(net), "ddpm")
        with torch.device("meta"):
            other = published.build(net.spec)
    except UserError as error:
        return [str(error).removesuffix(".")]
    heads, others = (n.temporal.layers.blocks[0].attn.num_heads for n in (net, other))  # type: ignore[union-attr]
    if heads != others:
        return [f"one of width {published.size.dim} has {others} heads, not {heads}"]
    own, its = ({name: x.shape for name, x in n.state_dict().items()} for n in (net, other))
    unlike = [name for name in {**own, **its} if own.get(name) != its.get(name)]
    return [f"its configuration does not give the shapes of {', '.join(unlike)}"] if unlike else []


@dataclass(frozen=True)
class Published:
    """A released model's configuration in arvid's terms."""

    clip_shape: tuple[int, int, int]
    """Frames, height and width."""
    context: ContextSpec
    size: Size
    options: dict[str, Any]
    """Keyword arguments of `NOVA`."""

    def build(self, spec: TokenSpec) -> NOVA:
        """The model, untrained, for a tokenizer's tokens."""
        diffusion = DiffusionOptions(**self.options["diffusion"])
        options = {**self.options, "diffusion": diffusion}
        return NOVA(spec, spec.grid(*self.clip_shape), self.context, self.size, **options)


def read_config(config: Mapping[str, Any], process: Process, shift: float = 1.0) -> Published:
    """The configuration from `transformer/config.json`, with the scheduler's process and shift.

    Raises UserError, with the fault, for a configuration that no released model has.
    """
    missing = [key for key in _KEYS if key not in config]
    if missing:
        raise UserError(f"not NOVA's configuration: it has no {', '.join(missing)}.")
    if config.get("rotary_pos_embed"):
        raise UserError("rotary_pos_embed is true: neither released models nor arvid have it.")
    (height, width), stride = _pair(config["image_size"]), config["image_stride"]
    patch = 15 // stride + 1
    base_frames, *coarse = config["video_base_size"]
    fine = [height // stride // patch, width // stride // patch]
    if list(config["image_base_size"]) != fine or [2 * side for side in coarse] != fine:
        raise UserError(
            f"image_base_size {config['image_base_size']} and video_base_size {config['video_base_size']} "
            f"do not fit image_size {config['image_size']}."
        )
    text_dim, rank = config["text_token_dim"], config.get("video_mixer_rank")
    return Published(
        clip_shape=(TRAINED_FRAMES if base_frames > 1 else 1, height, width),
        context=ContextSpec(
            text_dim=text_dim or None,
            text_len=config["text_token_len"] if text_dim else 0,
            conditions={
                **({} if text_dim else {"label": NUM_CLASSES}),
                **({"motion": 1} if base_frames > 1 else {}),
            },
        ),
        size=_size(config["arch"]),
        options={
            "patch": patch,
            "scale_shift": "off" if not rank else "full" if rank < 0 else rank,
            "nulls": "table",
            "base_frames": base_frames,
            "diffusion": {"process": process, "shift": shift},
        },
    )


def write_config(net: NOVA) -> dict[str, Any]:
    """`transformer/config.json` of a model that `to_published` accepts."""
    stride = net.spec.strides[1]
    fine = [net.grid.h // net.patch, net.grid.w // net.patch]
    rank = {"off": None, "full": -1}.get(net.scale_shift, net.scale_shift)  # type: ignore[arg-type]
    spatial = len(net.spatial.encoder.blocks) + len(net.spatial.decoder.blocks)
    depths = (len(net.temporal.layers.blocks), spatial)
    width = net.context.dim
    assert isinstance(net.head, DiffusionHead)  # to_published refuses others
    head = net.head.net
    return {
        "_class_name": "NOVATransformer3DModel",
        "image_dim": net.spec.size,
        "image_size": [stride * net.grid.h, stride * net.grid.w],
        "image_stride": stride,
        "text_token_dim": net.context.spec.text_dim,
        "text_token_len": net.context.spec.text_len,
        "image_base_size": fine,
        "video_base_size": [net.temporal.base_frames, *(side // 2 for side in fine)],
        "video_mixer_rank": rank,
        "rotary_pos_embed": False,
        "arch": [
            f"vit_d{depths[0]}w{width}",
            f"vit_d{depths[1]}w{width}",
            f"mlp_d{len(head.blocks)}w{head.embed.out_features}",
        ],
    }


_KEYS = (
    "image_dim",
    "image_size",
    "image_stride",
    "text_token_dim",
    "text_token_len",
    "image_base_size",
    "video_base_size",
    "arch",
)


def _pair(size: int | list[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _size(arch: list[str]) -> Size:
    """Size from the names of temporal layers, spatial layers and MLP: vit_d16w1024, vit_d32w1024, mlp_d3w1280."""
    patterns = (r"vit_d(\d+)w(\d+)", r"vit_d(\d+)w(\d+)", r"mlp_d(\d+)w(\d+)")
    found = [re.fullmatch(p, name) for p, name in zip(patterns, arch, strict=False)]
    if len(arch) != 3 or None in found:
        raise UserError(
            f"arch {arch} is unknown: it must be like vit_d16w1024, vit_d32w1024, mlp_d3w1280."
        )
    (temporal, width), (spatial, spatial_width), (head_depth, head_width) = (
        (int(m[1]), int(m[2])) for m in found if m is not None
    )
    if spatial != 2 * temporal or width != spatial_width:
        raise UserError(
            f"arch {arch}: spatial layers must be as wide as temporal layers, and twice as many."
        )
    return Size(
        name=f"d{temporal + spatial}w{width}",
        dim=width,
        depth=temporal + spatial,
        num_heads=16 if width == 1536 else max(width // 64, 1),
        head_dim=head_width,
        head_depth=head_depth,
    )
