"""What makes an evaluation run again: code that its numbers depend on, however it is written, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import arvid
from arvid import registry
from arvid.data.sprites import Sprites
from arvid.evaluation import code_identity as module
from arvid.evaluation import records
from arvid.evaluation.code_identity import ENTRIES, code_identity, source_hashes

SOURCE = '''"""What it is."""

from toy.b import factor
import toy.sub.c

X = {"a": 1}  # a comment
"""Of X."""


def double(x: int) -> int:
    """Twice x."""
    return factor * x
'''
SAME = '''# Another comment.
"""Said otherwise."""
from toy.b import factor
import toy.sub.c
X = {'a':
     1}
def double(x: int) -> int:
    return (factor *
            x)
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package whose module `a` imports `b` and `sub.c`, but not `d`."""
    root = tmp_path / "toy"
    (root / "sub").mkdir(parents=True)
    (root / "__init__.py").write_text('__version__ = "1"')
    (root / "a.py").write_text(SOURCE)
    (root / "b.py").write_text("factor = 2")
    (root / "sub/__init__.py").write_text("")
    (root / "sub/c.py").write_text("def later():\n    from toy import e")
    (root / "d.py").write_text("other = 1")
    (root / "e.py").write_text("import numpy")
    return root


def test_all_that_is_imported_counts(toy: Path) -> None:
    found = source_hashes(toy, ["toy.a"])
    assert sorted(found) == ["toy.a", "toy.b", "toy.e", "toy.sub.c"]


def test_comments_docstrings_and_format_do_not_count(toy: Path) -> None:
    before = source_hashes(toy, ["toy.a"])
    (toy / "a.py").write_text(SAME)
    (toy / "d.py").write_text("other = 2")
    (toy / "__init__.py").write_text('__version__ = "2"')
    (toy / "README.md").write_text("Read me.")
    assert source_hashes(toy, ["toy.a"]) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a", "factor * x", "factor + x"),
        ("a", '{"a": 1}', '{"a": 2}'),
        ("a", "def double", "def twice"),
        ("b", "2", "3"),
        ("e", "import numpy", "import torch"),
    ],
)
def test_code_counts(toy: Path, name: str, old: str, new: str) -> None:
    before = source_hashes(toy, ["toy.a"])
    path = toy / f"{name}.py"
    path.write_text(path.read_text().replace(old, new))
    assert source_hashes(toy, ["toy.a"]) != before


def test_a_source_is_parsed_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_hashes(toy, ["toy.a"])
    monkeypatch.setattr(module.ast, "parse", lambda _: pytest.fail("parsed again"))
    assert source_hashes(toy, ["toy.a"]) == before


def test_of_arvid_it_covers_what_makes_and_measures_clips() -> None:
    found = source_hashes(Path(arvid.__file__).parent, ENTRIES)
    for part in (
        "sampling.sample",
        "nn.attention",
        "evaluation.harness",
        "data.video",
        "contracts",
    ):
        assert f"arvid.{part}" in found
    assert "arvid.metrics.paired" not in found  # the scores in use add their metrics
    scores = source_hashes(Path(arvid.__file__).parent, ["arvid.evaluation.scores.paired"])
    assert "arvid.metrics.paired" in scores
    folders = {name.split(".")[1] for name in found}
    assert not folders & {"commands", "report", "cli", "doctor", "paradigms", "tokenizers"}


def test_classes_in_use_add_their_sources() -> None:
    by_name = {name: registry.get("paradigms", name) for name in registry.names("paradigms")}
    found = {code_identity([Sprites])} | {code_identity([Sprites, cls]) for cls in by_name.values()}
    assert len(found) == 1 + len(by_name)
    assert code_identity([Sprites]) == code_identity(iter([Sprites, object]))


def test_a_commit_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_identity([Sprites])
    module._own_sources.cache_clear()
    monkeypatch.setattr(records, "_git", lambda *_: pytest.fail("asked for the commit"))
    assert code_identity([Sprites]) == before


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of another package with a dataset."""
    path = tmp_path / "toy_plugin.py"
    path.write_text("from arvid.data.sprites import Sprites\n\nclass Mine(Sprites):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("toy_plugin", None)


def test_classes_of_other_packages_count_with_version_and_file(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = import_module("toy_plugin").Mine
    first = code_identity([mine])
    assert first != code_identity([Sprites])
    monkeypatch.setattr(module, "_version", lambda package: f"{package} 1")
    second = code_identity([mine])
    plugin.write_text(plugin.read_text() + "\nX = 1\n")
    third = code_identity([mine])
    assert len({first, second, third}) == 3


def test_a_version_is_public(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert module._version("torch") is not None
    assert "+" not in (module._version("torch") or "")
    assert module._version("no_such_package") is None
    info = tmp_path / "my_parts-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 3.1+local\n")
    (info / "entry_points.txt").write_text(
        "[arvid.metrics]\nbrightness = toy_brightness:Brightness\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert module._version("toy_brightness") == "3.1"
