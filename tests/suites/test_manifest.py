"""Samples of different models, seeds or prompts do not get into one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.suites.manifest import MANIFEST, claim, read_manifest


def test_another_sampling_is_not_mixed_in(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    for _ in range(2):
        claim(tmp_path, {"seed": 0, "name": "a", "shape": (1, 2)})
    with pytest.raises(UserError, match=r"other samples \(seed differ"):
        claim(tmp_path, {"seed": 1, "name": "a", "shape": (1, 2)})
    with pytest.raises(UserError, match=r"other samples \(fps differ"):
        claim(tmp_path, {"seed": 0, "name": "a", "shape": (1, 2), "fps": 8})
    assert read_manifest(tmp_path) == {"seed": 0, "name": "a", "shape": [1, 2]}
    for damaged in ("[]", "{"):
        (tmp_path / MANIFEST).write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_manifest(tmp_path)


def test_a_manifest_of_an_earlier_version_holds_options_at_their_defaults_too(
    tmp_path: Path,
) -> None:
    factors = {"paradigm": "nova", "token_type": "continuous", "size": "tiny"}
    earlier = {"guidance": 3.0, "temperature": 1.0, "rounds": 1, "overlap": None, "top_p": 0.9}

    def description(sampling: dict[str, object]) -> dict[str, object]:
        return {"seed": 0, "model": {"factors": factors, "sampling": sampling}}

    claim(tmp_path, description(earlier))
    claim(tmp_path, description({"guidance": 3.0}))
    with pytest.raises(UserError, match="model differ"):
        claim(tmp_path, description({"guidance": 3.0, "overlap": 2}))
