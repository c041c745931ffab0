"""Files of weights that cannot be read: what the error says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.importing import match, read_checkpoint, read_weights, require_dicts
from arvid.tokenizers.open_magvit2.published import import_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LFS, r"it is a pointer of Git LFS: fetch the file with `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>404", "it is a web page: download the file again"),
    ],
)
def test_what_lies_in_place_of_weights(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_weights(tmp_path / name)


def test_reasons_are_one_line_without_advice_to_trust_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for content, reason in (
        (b"version 2", r"\(Unsupported operand 118\)"),
        (b"hello", r"\(KeyError\(101\)\)"),
        (None, r"\(Unsupported global: GLOBAL argparse.Namespace was not an allowed .*\)"),
    ):
        if content is None:
            torch.save({"x": argparse.Namespace()}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=reason) as caught:
            read_checkpoint(path)
        for advice in ("weights_only", "safe_globals", "\n"):
            assert advice not in str(caught.value)


def test_entries_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(UserError, match="has no 'state_dict', but nothing"):
        require_dicts(path, {}, "state_dict")
    with pytest.raises(UserError, match=r"has no 'state_dict', but 'w0', .*, 'w39', \.\.\.\.$"):
        require_dicts(path, {f"w{i}": 0 for i in range(1000)}, "state_dict")


def test_names_that_are_no_text_are_no_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {1: "x"}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"not the published tokenizer: .* missing decoder"):
        import_file(tmp_path / "a.ckpt", tmp_path / "out.safetensors")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.zeros(2, 2, device="meta"), "without values"),
        (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "nested"),
    ],
)
def test_tensors_have_to_be_dense(make: Callable[[], Tensor], kind: str) -> None:
    with pytest.raises(UserError, match=f"1 of its tensors do not fit: a is {kind}, not a dense"):
        match({"a": make()}, {"b": torch.zeros(2, 2)}, {"b": "a"})
