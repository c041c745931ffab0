"""docs/figures.md: ten figures before and after, small enough for the repository."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
SHOWN = 'width="49%" align="top">'
PAIR = re.compile(
    rf'^<img src="(\S+)" alt="before" {SHOWN} <img src="(\S+)" alt="after" {SHOWN}$',
    re.MULTILINE,
)


def test_ten_figures_are_shown_before_and_after() -> None:
    pairs = PAIR.findall((DOCS / "figures.md").read_text())
    assert len(pairs) == 10
    before = [DOCS / name for name, _ in pairs]
    after = [DOCS / name for _, name in pairs]
    assert all(path.parent.name == "results" for path in after)  # no copies
    assert sorted(before) == sorted((DOCS / "figures").iterdir())
    assert max(path.stat().st_size for path in before) < 150_000
    assert all(min(Image.open(path).size) > 100 for path in (*before, *after))


def test_the_results_name_the_page_of_figures() -> None:
    assert "(../figures.md)" in (DOCS / "results/README.md").read_text()
