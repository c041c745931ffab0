"""One flipped bit in a file that arvid wrote is refused with an error that names the file, wherever the bit lies.

A kind of file is how one is made in an empty folder, and how all of it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from arvid.contracts import TokenSpec, TokenType, UserError
from arvid.data.shard_files import MANIFEST, Manifest, begin, shard_name, write_shard
from arvid.data.token_shards import TokenShards
from arvid.evaluation import records
from arvid.evaluation.parts import Parts
from arvid.evaluation.records import MetricValue, ResultRecord
from arvid.training.checkpoint_io import read_checkpoint, save_checkpoint, verifying
from arvid.training.export import load_tokenizer, save_tokenizer


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], Path]
    """Writes one into an empty folder, and returns its path."""
    load: Callable[[Path], object]
    """Reads all of it."""


def make_shards(folder: Path, token_type: TokenType) -> None:
    spec = TokenSpec(token_type, 300 if token_type == "discrete" else 4, (4, 8, 8), True)
    manifest = Manifest(
        tokenizer="t",
        data="d",
        spec=spec,
        clip_shape=(5, 16, 16),
        classes=("cat", "dog"),
        num_clips=6,
        clips_per_shard=6,
    )
    begin(folder, manifest)
    ids, numbers = torch.randint(300, (6, 2, 2, 2)), torch.randn(6, 2, 2, 2, 4)
    facts = [{"caption": f"clip {i}", "label": i % 2, "motion": 0.5, "fps": 8.0} for i in range(6)]
    write_shard(folder, manifest, 0, ids if token_type == "discrete" else numbers, None, facts)


def make_shard(token_type: TokenType) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_shards(folder, token_type)
        return folder / shard_name(0)

    return make


def make_manifest(folder: Path) -> Path:
    make_shards(folder, "discrete")
    return folder / MANIFEST


def read_folder(path: Path) -> None:
    shards = TokenShards(str(path.parent))
    for i in range(len(shards)):
        shards.example(i)


def make_record(folder: Path) -> Path:
    metric = MetricValue(name="fd", value=102.5, protocol="p", spread=1e-05, count=4)
    record = ResultRecord(
        name="nova",
        row="trained",
        setting_hash="ab12",
        setting={"data.size": 32, "optimiser.eps": 1e-08},
        protocol={"name": "p", "hash": "cd34", "num_clips": 4},
        metrics=(metric,),
        checkpoint_sha256="0" * 64,
    )
    records.save(record, folder / "p.json")
    return folder / "p.json"


def make_part(folder: Path) -> Path:
    Parts(folder, "p", "identity").write("0-00000", {"fd": {"real": torch.randn(4, 3)}}, 1.5)
    return next(folder.rglob("*.safetensors"))


def read_part(path: Path) -> object:
    return Parts(path.parents[1], "p", "identity").read("0-00000")


def make_checkpoint(folder: Path) -> Path:
    state = {"paradigm.weight": torch.randn(8, 8), "tokenizer.weight": torch.randn(4)}
    save_checkpoint({"state_dict": state, "global_step": 3}, folder / "last.ckpt")
    return folder / "last.ckpt"


def read_checkpoint_file(path: Path) -> object:
    with verifying(path):
        return read_checkpoint(path)


def make_tokenizer(folder: Path) -> Path:
    tokenizer = load_tokenizer("sprites-magvit_fsq")
    save_tokenizer(tokenizer, folder / "tokenizer.safetensors", {"from": "a test"})
    return folder / "tokenizer.safetensors"


KINDS = {
    "checkpoint": Kind(make_checkpoint, read_checkpoint_file),
    "tokenizer": Kind(make_tokenizer, load_tokenizer),
    "shard of ids": Kind(make_shard("discrete"), read_folder),
    "shard of numbers": Kind(make_shard("continuous"), read_folder),
    "manifest": Kind(make_manifest, read_folder),
    "record": Kind(make_record, records.load),
    "part": Kind(make_part, read_part),
}


@pytest.mark.parametrize("num_flips", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_refused(name: str, num_flips: int, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path)
    kind.load(path)
    whole = path.read_bytes()
    bits = np.random.default_rng(len(name)).integers(8 * len(whole), size=num_flips).tolist()
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            kind.load(path)
        assert str(path) in str(caught.value), f"bit {bit}"
    path.write_bytes(whole)
    kind.load(path)
