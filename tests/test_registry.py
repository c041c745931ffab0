"""Names and classes: built-in folders and tables, third parties, and what the user hears when a name is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from arvid import registry
from arvid.contracts import Clip, UserError, VideoDataset
from arvid.trust import trusting


class EmptyDataset(VideoDataset):
    """The smallest dataset: stands for one of another package."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Clip:
        raise IndexError(index)

    def fingerprint(self) -> str:
        return "empty"


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `third_party` that can be imported as if another package had brought it."""
    module = ModuleType("third_party")
    module.EmptyDataset = EmptyDataset
    module.number = 3
    monkeypatch.setitem(sys.modules, "third_party", module)
    return module


def _announce(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name=name, value=value, group="arvid.datasets")
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] if group == point.group else []
    )


def _all_built_in() -> list[tuple[registry.Kind, str]]:
    return [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), _all_built_in())
def test_every_known_name_gives_a_class_that_fulfils_the_contract(
    kind: registry.Kind, name: str
) -> None:
    cls = registry.get(kind, name)
    assert cls is registry.get(kind, f"{cls.__module__}.{cls.__qualname__}")


@pytest.mark.parametrize("kind", ["paradigms", "tokenizers"])
def test_folder_name_is_the_short_name(kind: registry.Kind) -> None:
    folder = Path(__file__).parents[1] / kind
    assert registry.names(kind) == sorted(p.parent.name for p in folder.glob("*/__init__.py"))


def test_listing_imports_no_part() -> None:
    code = (
        "import sys; from arvid import registry; [registry.names(k) for k in registry.KINDS];"
        "print([m for m in sys.modules if m.startswith(('arvid.paradigms.', 'arvid.tokenizers.',"
        " 'arvid.data.', 'arvid.metrics.', 'transformers', 'lightning'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_unknown_name_suggests_and_lists() -> None:
    with pytest.raises(UserError, match=r"no dataset called 'Sprite'.*'sprites'\?.*video_folder"):
        registry.get("datasets", "Sprite")


@pytest.mark.usefixtures("third_party")
def test_third_party_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "empty", "third_party:EmptyDataset")
    assert "empty" in registry.names("datasets")
    assert registry.get("datasets", "empty") is EmptyDataset
    assert registry.get("datasets", "third_party.EmptyDataset") is EmptyDataset
    with pytest.raises(UserError, match="--trust other_party"):
        registry.get("datasets", "other_party.EmptyDataset")


def test_name_of_a_built_in_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "sprites", "third_party:EmptyDataset")
    with pytest.raises(UserError, match=r"arvid.data.sprites:Sprites and third_party:EmptyDataset"):
        registry.names("datasets")


@pytest.mark.usefixtures("third_party")
def test_dotted_path_of_a_trusted_package() -> None:
    with pytest.raises(UserError, match="--trust third_party"):
        registry.get("datasets", "third_party.EmptyDataset")
    with trusting(["third_party"]):
        assert registry.get("datasets", "third_party.EmptyDataset") is EmptyDataset


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("third_party.number", "not a subclass of VideoDataset"),
        ("third_party.EmptyDatasets", "Did you mean 'EmptyDataset'"),
        ("no_such_package.module.Class", "no module 'no_such_package'"),
    ],
)
def test_wrong_dotted_path_is_an_error_for_the_user(name: str, message: str) -> None:
    with trusting([name.split(".")[0]]), pytest.raises(UserError, match=message):
        registry.get("datasets", name)


def test_missing_dependency_of_a_plug_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        trusting(["needs_more"]),
        pytest.raises(UserError, match="needs the package 'no_such_package'"),
    ):
        registry.get("datasets", "needs_more.Class")


def test_package_with_two_candidates_is_refused(third_party: ModuleType) -> None:
    third_party.Other = type("Other", (EmptyDataset,), {})
    with pytest.raises(UserError, match=r"exactly one VideoDataset .* EmptyDataset, Other"):
        registry._only_class(third_party, VideoDataset)
    third_party.__all__ = ["Other"]
    assert registry._only_class(third_party, VideoDataset) is third_party.Other


def test_a_package_that_is_installed_meanwhile_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entry points are read again when a folder of sys.path has changed."""
    monkeypatch.syspath_prepend(tmp_path)
    os.utime(tmp_path, (0, 0))
    assert "meanwhile" not in registry.names("paradigms")
    info = tmp_path / "later-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[arvid.paradigms]\nmeanwhile = later:Later\n")
    assert "meanwhile" in registry.names("paradigms")
