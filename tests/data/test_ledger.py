"""The ledger returns the added values, and no damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

from arvid.data._ledger import Ledger
from arvid.files import sha256_json


def test_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    facts = {"a": 1.5, "b": [1, {"c": None}], "ä": "text"}
    for key, value in facts.items():
        Ledger(path).add(key, value)
    again = Ledger(path)
    assert {key: again.get(key) for key in facts} == facts
    assert again.get("other") is None


def test_a_flipped_bit_costs_a_fact_and_gives_no_other(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    Ledger(path).add("a", 1.25)
    Ledger(path).add("b", 2.5)
    whole = path.read_bytes()
    lost = 0
    for bit in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = Ledger(path)
        assert found.get("a") in (1.25, None)
        assert found.get("b") in (2.5, None)
        lost += (found.get("a"), found.get("b")) != (1.25, 2.5)
    assert lost > 0.9 * 8 * len(whole) / 5


def test_lines_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps([sha256_json("a"), 1.5]) + "\n")
    Ledger(path).add("b", 2)
    assert (Ledger(path).get("a"), Ledger(path).get("b")) == (1.5, 2)
