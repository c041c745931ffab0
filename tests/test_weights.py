"""Published weights: what is missing or damaged is an error that says what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from arvid import weights
from arvid.contracts import UserError
from arvid.weights import Weights

CONTENT = b"weights"


@pytest.fixture(autouse=True)
def empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def _add(monkeypatch: pytest.MonkeyPatch, digest: str) -> Weights:
    """Announce weights called `small` and write their file."""
    known = Weights(file="w.pt", purpose="a test", source="somewhere", digest=digest)
    monkeypatch.setitem(weights.KNOWN, "small", known)
    known.path.write_bytes(CONTENT)
    return known


@pytest.mark.parametrize("name", weights.KNOWN)
def test_missing_file_is_named_with_its_source_and_place(name: str) -> None:
    known = weights.KNOWN[name]
    with pytest.raises(UserError) as error:
        weights.locate(name)
    for part in (known.file, known.source, str(known.path)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + hashlib.sha256(CONTENT).hexdigest()[:8],
        "git-blob:" + hashlib.sha1(b"blob 7\0" + CONTENT).hexdigest(),
    ],
)
def test_published_file_is_found(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    known = _add(monkeypatch, digest)
    assert weights.locate("small") == known.path


def test_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, "sha256:00000000")
    with pytest.raises(UserError, match="not the published file"):
        weights.locate("small")
