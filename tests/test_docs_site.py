"""The docs site: built strictly where mkdocs is installed, and complete in any case."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


class _Loader(yaml.SafeLoader):
    """mkdocs.yml may hold tags of Python names; none of them is followed."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page)
    assert "VideoTokenizer" in (tmp_path / "reference/contracts.html").read_text()


def test_every_page_of_the_navigation_exists() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    named = list(_files(config["nav"]))
    assert len(named) == len(set(named)) > 20
    assert [name for name in named if not (ROOT / "docs" / name).is_file()] == []


def _files(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(inner, str | None.__class__)
    return [name for part in inner for name in _files(part)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#|data:)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.stem
)
def test_what_the_reference_documents_exists(page: Path) -> None:
    names = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    assert names
    for name in names:
        if importlib.util.find_spec(name.rpartition(".")[0]) and name != "arvid.contracts":
            module = importlib.import_module(name.rpartition(".")[0])
            assert getattr(module, name.rpartition(".")[2]).__doc__, name
