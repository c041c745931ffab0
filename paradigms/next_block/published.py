"""Converts generators of the released NBP code (RenShuhuai-Andy/NBP, commit 421e936): `arvid import nbp`.

`k600_base_nbp16.ckpt`, `k600_3b_nbp16.ckpt`, `ucf_base_nbp16_hybrid.ckpt` and `ucf_3b_nbp16_hybrid.ckpt`
(https://huggingface.co/ShuhuaiRen/NBP-k600-base and so on) are checkpoints of Lightning 1.5. `state_dict` has the
weights of generator and tokenizer, and `hyper_parameters` the training's arguments. Checkpoints that DeepSpeed wrote
and its script converted have the same layout, with the prefix "module." in the names.

The released code has one table and one softmax for the ids of special tokens, words and video, in an order that depends
on the mode. arvid has separate tables for special tokens, words and video, and its softmax begins with video ids. Q, K
and V are one matrix here. The conversion only moves rows, so results are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid.contracts import TokenGrid, UserError, VideoTokenizer
from arvid.files import sha256_file
from arvid.importing import (
    Imported,
    Move,
    match,
    read_training_checkpoint,
    require_dicts,
    strip_prefix,
)
from arvid.paradigms.next_block.layout import Start, raster_block
from arvid.paradigms.next_block.prompt import LlamaPrompt
from arvid.training.export import load_tokenizer
from arvid.training.generator_file import save_generator

STATE, ARGUMENTS = "state_dict", "hyper_parameters"
PREFIXES = ("module.", "_forward_module.")
MASK = ".mask"
"""Suffix of ignored tensors: older files have attention masks, which the released code ignores too."""
NETWORK = "transformer."
"""Prefix of the network's tensors; others belong to the tokenizer."""
NUM_WORDS = 32_000
"""Number of ids of LLaMA's tokenizer."""
SAMPLING = {"top_k": 16_000, "top_p": 0.9}
BLOCK_NAMES = {
    "ln1": "norm1",
    "attn.proj": "attn.proj",
    "ln2": "norm2",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}
"""Layers of a block: released name -> arvid's name."""


@dataclass(frozen=True)
class Released:
    """The network's configuration, from the arguments of its training."""

    depth: int
    dim: int
    num_heads: int
    block_len: int
    num_positions: int
    text_len: int
    """Number of prompt tokens; 0 without text."""
    start: Start
    num_video_ids: int
    dropout: float

    @property
    def num_words(self) -> int:
        """Number of ids of words; 0 without text."""
        return NUM_WORDS if self.text_len else 0

    @property
    def num_special(self) -> int:
        """Number of ids before the words. (With start "none" and text, one unused id is at the end instead.)"""
        return self.block_len if self.start == "hybrid" else 0

    @property
    def num_ids(self) -> int:
        """Number of all ids, an unused one included."""
        unused = self.start == "none" and self.text_len > 0
        return self.num_special + self.num_words + self.num_video_ids + unused

    @classmethod
    def of(cls, arguments: Any, num_video_ids: int) -> Released:
        """Raises UserError for a training whose network arvid does not have."""
        given = vars(arguments)
        text, block_len = not given["unconditional"], given["token_number_per_step"]
        if text and given["cond_stage_key"] != "text":
            raise UserError(
                f"its condition is {given['cond_stage_key']!r}; only text is supported."
            )
        hybrid = bool(given["hybrid"])
        if given["starts_with_bov"] and (not hybrid or block_len == 1):
            raise UserError(
                "it has begin-of-video tokens but is not hybrid with blocks of several tokens. The released code "
                "cannot sample from such a model, and none was released."
            )
        return cls(
            depth=given["n_layer"],
            dim=given["n_embd"],
            num_heads=given["n_head"],
            block_len=block_len,
            num_positions=given["block_size"],
            text_len=given["cond_token_num"] if text else 0,
            start="hybrid" if hybrid else "none",
            num_video_ids=num_video_ids,
            dropout=given["transformer_dropout"],
        )


def import_file(file: Path, out: Path, *, tokenizer: Path, text: Path | None) -> Imported:
    """Write the released generator in `file` as a checkpoint that `load_generator` reads.

    Args:
        file: the released checkpoint.
        out: file to write.
        tokenizer: its video tokenizer, as a file of arvid.
        text: LLaMA's tokenizer, for a model with prompts.

    Raises UserError with a list of tensors that are missing, left over or of another shape, and if a tokenizer does not
    fit.
    """
    checkpoint = read_training_checkpoint(file)
    require_dicts(file, checkpoint, STATE, ARGUMENTS)
    video = load_tokenizer(tokenizer)
    try:
        arguments = checkpoint[ARGUMENTS]["args"]
        released = Released.of(arguments, video.spec.size)
        clip = _clip(arguments)
        grid = _grid(clip, video)
    except KeyError as error:
        raise UserError(f"{file}: its {ARGUMENTS} lack {error}.") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    tensors, others = _network(checkpoint[STATE])
    try:
        found, moves = match(tensors, shapes(released), {name: name for name in shapes(released)})
    except UserError as error:
        size = f"{video.spec.size:,} ids of {tokenizer}"
        raise UserError(f"{file}: not the released generator on the {size}: {error}") from error
    save_generator(
        out,
        config=_config(released, grid, clip, _text(released, text)),
        tensors={f"paradigm.{name}": t for name, t in to_arvid(found, released).items()},
        tokenizer=video,
        record={"imported": "nbp", "file": file.name, "sha256": sha256_file(file)},
    )
    moves = [Move(move.source, move.shape, targets(move.source)) for move in moves]
    return Imported(moves, unused=[*(key for key in checkpoint if key != STATE), *others])


def shapes(released: Released) -> dict[str, Tensor]:
    """The released tensors by name, on the meta device."""
    dim, ids = released.dim, released.num_ids
    sizes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (ids, dim),
        "pos_emb": (1, released.num_positions, dim),
        "uncond_embedding": (released.text_len, dim),
    }
    for i in range(released.depth):
        layers = {name: (dim, dim) for name in ("key", "query", "value", "proj")}
        linear = {f"attn.{name}": size for name, size in layers.items()}
        linear |= {"mlp.0": (4 * dim, dim), "mlp.2": (dim, 4 * dim)}
        for name, size in linear.items():
            sizes |= {f"blocks.{i}.{name}.weight": size, f"blocks.{i}.{name}.bias": size[:1]}
        for name in ("ln1", "ln2"):
            sizes |= {f"blocks.{i}.{name}.{part}": (dim,) for part in ("weight", "bias")}
    sizes |= {"ln_f.weight": (dim,), "ln_f.bias": (dim,), "head.weight": (ids, dim)}
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def to_arvid(tensors: Mapping[str, Tensor], released: Released) -> dict[str, Tensor]:
    """`NextBlock`'s state dict from the released tensors."""
    table, head = tensors["tok_emb.weight"], tensors["head.weight"]
    words = slice(released.num_special, released.num_special + released.num_words)
    video = slice(words.stop, words.stop + released.num_video_ids)
    state = {
        "special": table[: words.start],
        "embed.project.weight": table[video],
        "context.null": tensors["uncond_embedding"],
        "places.positions": tensors["pos_emb"][0],
        "norm.weight": tensors["ln_f.weight"],
        "norm.bias": tensors["ln_f.bias"],
        "head.logits.weight": torch.cat([head[video], head[: words.stop], head[video.stop :]]),
    }
    if released.num_words:
        state["context.text.weight"] = table[words]
    for i in range(released.depth):
        source, target = f"blocks.{i}", f"transformer.blocks.{i}"
        for part in ("weight", "bias"):
            qkv = [tensors[f"{source}.attn.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"{target}.attn.qkv.{part}"] = torch.cat(qkv)
            for theirs, ours in BLOCK_NAMES.items():
                state[f"{target}.{ours}.{part}"] = tensors[f"{source}.{theirs}.{part}"]
    return state


def targets(source: str) -> str:
    """Names in arvid that a released tensor goes to, for the report."""
    whole = {
        "tok_emb.weight": "special, context.text.weight, embed.project.weight",
        "pos_emb": "places.positions",
        "uncond_embedding": "context.null",
        "head.weight": "head.logits.weight",
    }
    if source in whole:
        return whole[source]
    if source.startswith("ln_f."):
        return source.replace("ln_f.", "norm.")
    _, number, layer = source.split(".", 2)
    layer, part = layer.rsplit(".", 1)
    rows = {"attn.query": "[:D]", "attn.key": "[D:2D]", "attn.value": "[2D:]"}
    own = f"attn.qkv.{part}{rows[layer]}" if layer in rows else f"{BLOCK_NAMES[layer]}.{part}"
    return f"transformer.blocks.{number}.{own}"


def _config(
    released: Released,
    grid: TokenGrid,
    clip: tuple[int, int, int],
    text: dict[str, Any] | None,
) -> dict[str, Any]:
    """The arguments of a GeneratorModule as plain data."""
    options = {
        "block": list(raster_block(released.block_len, grid)),
        "start": released.start,
        "num_positions": released.num_positions,
        "num_other_ids": released.num_ids - released.num_video_ids,
        "mask_pads": False,
        "dropout": released.dropout,
        "condition_dropout": 0.0,
    }
    size = {"dim": released.dim, "depth": released.depth, "num_heads": released.num_heads}
    name = f"d{released.depth}w{released.dim}"
    return {
        "paradigm": {
            "class_path": "arvid.paradigms.next_block.NextBlock",
            "init_args": options,
        },
        "token_type": "discrete",
        "size": {"name": name, **size},
        "clip_shape": list(clip),
        "text": text,
        "sampling": SAMPLING,
    }


def _text(released: Released, path: Path | None) -> dict[str, Any] | None:
    if not released.text_len:
        return None
    if path is None:
        raise UserError(
            "This generator has prompts: give LLaMA's tokenizer.json, or its folder, with --text."
        )
    arguments = {"tokenizer": str(path), "num_tokens": released.text_len}
    if (num := LlamaPrompt(str(path)).vocab_size) != NUM_WORDS:
        raise UserError(
            f"{path}: has {num:,} ids; the generator was trained with LLaMA's of {NUM_WORDS:,}."
        )
    return {"class_path": "arvid.paradigms.next_block.prompt.LlamaPrompt", "init_args": arguments}


def _clip(arguments: Any) -> tuple[int, int, int]:
    """Frames, height and width of the clips."""
    given = vars(arguments)
    return given["sequence_length"], given["resolution"], given["resolution"]


def _grid(clip: tuple[int, int, int], tokenizer: VideoTokenizer) -> TokenGrid:
    if tokenizer.spec.type != "discrete":
        raise UserError("it was trained on a discrete tokenizer; the one given is continuous.")
    return tokenizer.spec.grid(*clip)


def _network(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors without prefix, and the names of the file's other parts."""
    for prefix in PREFIXES:
        tensors = strip_prefix(tensors, prefix)
    network = {
        name.removeprefix(NETWORK): t.float()
        for name, t in tensors.items()
        if name.startswith(NETWORK) and not name.endswith(MASK)
    }
    others = {name.split(".")[0] for name in tensors if not name.startswith(NETWORK)}
    masks = {"attention masks" for name in tensors if name.endswith(MASK)}
    return network, sorted(others | masks)
