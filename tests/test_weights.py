"""Published weights: what is missing or damaged is an error that says what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from arvid import weights
from arvid.cli import main
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


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, web: Any) -> Weights:
    """Weights called `small` that can be downloaded."""
    known = Weights(
        file="w.pt",
        purpose="a test",
        source="somewhere",
        digest="sha256:" + hashlib.sha256(CONTENT).hexdigest(),
        url=web.url("published.pt", CONTENT),
    )
    monkeypatch.setitem(weights.KNOWN, "small", known)
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


def test_missing_file_is_downloaded_where_that_is_asked_for(published: Weights) -> None:
    with pytest.raises(UserError, match="which is missing"):
        weights.locate("small")
    with weights.downloading(True):
        assert weights.locate("small").read_bytes() == CONTENT
    published.path.unlink()
    with pytest.raises(UserError, match="which is missing"):
        weights.locate("small")


def test_download_that_fails_or_is_another_file_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, web: Any
) -> None:
    cases = {
        web.url("page.pt", b"a page that says: not found"): "is not the published file",
        web.url("absent.pt"): r"absent.pt cannot be downloaded \(",
        None: "w.pt cannot be downloaded as it is",
    }
    for url, reason in cases.items():
        known = Weights(
            file="w.pt", purpose="a test", source="somewhere", digest="sha256:0123", url=url
        )
        monkeypatch.setitem(weights.KNOWN, "small", known)
        with (
            weights.downloading(True),
            pytest.raises(UserError, match=f"(?s){reason}.*Get it from somewhere"),
        ):
            weights.locate("small")
        assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_the_command_lists_downloads_and_checks(
    published: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "KNOWN", {"small": published})
    monkeypatch.setattr("arvid.commands.weights.KNOWN", weights.KNOWN)
    assert "`arvid weights get small` downloads it" in weights.how_to_get("small")
    assert main(["weights", "list"]) == 0
    assert "small  absent   a test" in capsys.readouterr().out
    assert main(["weights", "get", "small"]) == 0
    assert capsys.readouterr().out == f"{published.path}\n"
    assert main(["weights", "check"]) == 0
    published.path.write_bytes(b"changed")
    assert main(["weights", "check", "small"]) == 1
    assert "small  damaged" in capsys.readouterr().out
    assert main(["weights", "get"]) == 2
    assert main(["weights", "get", "smal"]) == 2
    assert "Did you mean 'small'?" in capsys.readouterr().err


def test_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, "sha256:00000000")
    with pytest.raises(UserError, match="not the published file"):
        weights.locate("small")
