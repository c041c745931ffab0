"""DPG-Bench's numbers from fabricated answers: the cascade, the means, the categories, the skipped row."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.suites.image_benchmarks.dpg_bench import (
    Item,
    aggregate,
    read_details,
    read_questions,
    tile_score,
)

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
)


def item(parents: dict[int, tuple[int, ...]]) -> Item:
    names = ("entity - whole", "attribute - color", "relation - spatial", "entity - part")
    categories = {q: names[i % len(names)] for i, q in enumerate(parents)}
    return Item({q: f"Question {q}, is it?" for q in parents}, parents, categories)


def row(name: str, question: int, dependency: str, kind: str = "entity - whole") -> str:
    asked = f'"Is {name}, number {question}, there?"'
    return f'{name},t,k,{question},"{dependency}",b,d,"{kind} (x, y)",{asked}\n'


def test_a_no_is_handed_down_from_parents_to_children() -> None:
    chain = item({1: (0,), 2: (1,), 3: (2,), 4: (0,)})
    yes = dict.fromkeys(range(1, 5), True)
    assert tile_score(chain, yes) == 1
    assert tile_score(chain, {**yes, 3: False}) == 3 / 4
    assert tile_score(chain, {**yes, 1: False}) == 1 / 4  # 2 falls with 1, and 3 with 2
    both = item({1: (0,), 2: (0,), 3: (1, 2)})
    assert tile_score(both, {1: True, 2: False, 3: True}) == 1 / 3


def test_cascade_goes_through_the_questions_once_in_the_files_order() -> None:
    yes = {1: False, 2: True, 3: True}
    # 3 stands before 2, so it sees 2 as it was answered, before 2 falls with 1.
    assert tile_score(item({1: (0,), 3: (2,), 2: (1,)}), yes) == pytest.approx(1 / 3)
    assert tile_score(item({1: (0,), 2: (1,), 3: (2,)}), yes) == 0


def test_total_is_over_tiles_then_images_and_categories_over_last_tiles_ungated() -> None:
    items = {"a": item({1: (0,), 2: (1,)}), "b": item({1: (0,), 2: (1,), 3: (1,), 4: (0,)})}
    no_first = {1: False, 2: True}
    answers = {
        "a": [{1: True, 2: True}, {1: True, 2: False}, no_first, no_first],
        "b": [dict.fromkeys(range(1, 5), True)] * 3 + [{1: True, 2: False, 3: True, 4: False}],
    }
    scores = aggregate(items, answers)
    assert scores.images == pytest.approx({"a": 100 * 1.5 / 4, "b": 100 * 3.5 / 4})
    assert scores.total == pytest.approx(100 * (1.5 + 3.5) / 8)
    assert scores.level2 == {
        "entity - whole": [0, 100],
        "attribute - color": [100, 0],  # a's second counts though its parent was answered with no
        "relation - spatial": [100],
        "entity - part": [0],
    }
    assert {k: sorted(v) for k, v in scores.level1.items()} == {
        "entity": [0, 0, 100],
        "attribute": [0, 100],
        "relation": [100],
    }
    with pytest.raises(UserError, match="no answers"):
        aggregate(items, {})


def test_question_file_loses_its_first_row_as_in_the_scorer(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    rows = [
        row("a", 1, "0"),
        row("a", 2, "1"),
        row("b", 1, "0"),
        row("b", 2, "1, 0", "global -"),
        row("c", 1, "0"),
    ]
    path.write_text(HEADER + "".join(rows))
    items = read_questions(path)
    assert list(items) == ["a", "b", "c"]
    assert items["a"].questions == {2: "Is a, number 2, there?"}
    assert not items["a"].is_complete
    assert items["b"].parents == {1: (0,), 2: (1, 0)}
    assert items["b"].categories == {1: "entity - whole", 2: "global -"}
    assert items["b"].is_complete
    # A later block of the same item takes the place of the earlier one.
    path.write_text(HEADER + "".join([*rows, row("b", 5, "0")]))
    assert list(read_questions(path)["b"].questions) == [5]


def test_damaged_question_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    path.write_text("item_id,text\n")
    with pytest.raises(UserError, match=r"not DPG-Bench's question file, without .*dependency"):
        read_questions(path)
    path.write_text(HEADER + row("a", 1, "0") + row("a", 2, "one"))
    with pytest.raises(UserError, match="line 3"):
        read_questions(path)


def test_answers_are_read_from_the_scorers_lines(tmp_path: Path) -> None:
    path = tmp_path / "results_detail.txt"
    items = {"a": item({1: (0,), 2: (1,)})}
    image = "/images, of (mine)/a.png"
    lines = [
        f"{image}, ({x}, 0, {x + 8}, 8), {items['a'].questions[q]}, {answer}"
        for x, answers in ((0, ("yes", "no")), (8, ("Yes", "yes")))
        for q, answer in zip((1, 2), answers, strict=True)
    ]
    path.write_text("\n".join([*lines, "/images/other.png, (0, 0, 8, 8), Who?, no"]) + "\n")
    expected = [{1: True, 2: False}, {1: False, 2: True}]  # only `yes` is yes
    assert read_details(path, items) == {"a": expected}
    path.write_text("\n".join(lines[:3]) + "\n")
    assert read_details(path, items) == {"a": expected[:1]}
    path.write_text(lines[0] + "\nyes\n")
    with pytest.raises(UserError, match="line 2: not an answer"):
        read_details(path, items)
    path.write_text(lines[1] + "\n" + lines[0] + "\n")
    with pytest.raises(UserError, match="was asked"):
        read_details(path, items)
