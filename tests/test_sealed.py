"""Sealed files: what was written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arvid import sealed
from arvid.sealed import (
    BLANK,
    Damaged,
    seal,
    verify,
    verify_tensor_file,
    verify_tensors,
    write_sealed_json,
)
from arvid.tensor_files import load_tensors, save_tensors

VALUE = {"text": 'a "checksum": "' + "1" * 64 + '"', "numbers": [1.5, None]}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def test_a_sealed_file_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_sealed_json(path, VALUE)
    content = path.read_bytes()
    verify(content)
    found = json.loads(content)
    checksum = found.pop("checksum")
    assert found == VALUE
    assert (
        checksum == hashlib.sha256(content.replace(checksum.encode(), BLANK.encode())).hexdigest()
    )


def test_a_sealed_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"said": VALUE["text"]})
    tensors, metadata = load_tensors(path)
    assert metadata["said"] == VALUE["text"]
    for found in (tensors, load_file(path)):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "value.json", {"a": 1e-05})
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    for name, check in (("value.json", verify), ("x.safetensors", verify_tensors)):
        whole = (tmp_path / name).read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Damaged):
                check(bytes(damaged))


def test_what_is_cut_short_or_has_no_checksum_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            load_tensors(path)
    save_file(TENSORS, path)
    with pytest.raises(Damaged, match="has lost its checksum"):
        load_tensors(path)
    verify_tensor_file(path, required=False)
    with pytest.raises(Damaged, match="lost"):
        verify(b"{}")


def test_a_value_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_sealed_json(path, VALUE)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sealed_json(path, {"a": float("nan")})
    verify(path.read_bytes())
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_the_first_checksum_is_the_files(tmp_path: Path) -> None:
    content = seal(f'{{"checksum": "{BLANK}", "of": {{"checksum": "{"2" * 64}"}}}}'.encode())
    verify(content)
    assert json.loads(content)["of"][sealed.KEY] == "2" * 64
