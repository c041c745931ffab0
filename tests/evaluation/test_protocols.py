"""Protocols: the published constants, which clips are taken, files of one's own, contradictions refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from arvid import registry
from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.evaluation.protocols import Protocol, get_protocol, protocols, read_protocol
from arvid.metrics.preprocessing import PREPROCESSINGS

SMALL = Protocol(name="small", summary="", task="generation", metrics=("fd-pixels",), num_clips=4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nbp-ucf101-cfp", (10_000, 4, 17, 128, 8, "center", "squash", 1, 16, "nbp", 1)),
        ("nbp-ucf101-cg", (10_000, 1, 17, 128, 8, "center", "squash", 0, 16, "nbp", 1)),
        ("nbp-k600-fp", (50_000, 1, 17, 128, 25, "random", "squash", 5, 16, "nbp-64", 1)),
        ("nbp-rfvd-ucf101", (None, 1, 17, 128, 16, "center", "squash", 0, 17, "tats", 1)),
        ("nbp-rfvd-k600", (None, 1, 17, 128, 16, "center", "squash", 0, 17, "tats", 1)),
        ("magvit-ucf101", (10_000, 4, 16, 128, None, "random", "crop", 0, 16, "magvit", 1)),
        (
            "omnitokenizer-rfvd",
            (None, 1, 17, 256, None, "center", "squash", 0, 17, "omnitokenizer", 1),
        ),
        ("stylegan-v-2048-16f", (2048, 1, 16, 256, None, "random", "crop", 0, 16, "stylegan-v", 0)),
        (
            "stylegan-v-2048-128f",
            (2048, 1, 128, 256, None, "random", "crop", 0, 128, "stylegan-v", 0),
        ),
        (
            "stylegan-v-2048-128f-sub8",
            (2048, 1, 128, 256, None, "random", "crop", 0, 16, "stylegan-v", 0),
        ),
        ("teco-dmlab", (256, 4, 300, 64, None, "start", "crop", 144, None, None, 1)),
        ("teco-dmlab-fvd", (256, 4, 300, 64, None, "start", "crop", 36, None, "teco", 1)),
        ("teco-minecraft", (256, 4, 300, 128, None, "start", "crop", 144, None, None, 1)),
        ("teco-minecraft-fvd", (256, 4, 300, 128, None, "start", "crop", 36, None, "teco", 1)),
        ("latte-2048-16f", (2048, 1, 16, 256, None, "random", "crop", 0, 16, "stylegan-v", 0)),
        ("arvid-1024-16f", (1024, 3, 17, 128, 8, "center", "crop", 0, 16, "antialiased", 1)),
        ("nova-extrapolation", (200, 1, 201, (480, 768), 12, "start", "crop", 1, None, None, 1)),
    ],
)
def test_published_protocols(name: str, expected: tuple[Any, ...]) -> None:
    p = get_protocol(name)
    assert p.clip is not None
    clip = (p.clip.num_frames, p.clip.size, p.clip.fps, p.clip.window, p.clip.resize)
    scoring = (p.condition_frames, p.scored_frames, p.preprocessing, p.ddof)
    assert (p.num_clips, p.folds, *clip, *scoring) == expected
    assert "--real" not in p.real_split


def test_every_protocol_names_what_exists() -> None:
    for name, protocol in protocols().items():
        assert protocol.name == name
        metrics = (*protocol.metrics, *protocol.optional_metrics)
        assert set(metrics) <= set(registry.names("metrics"))
        assert protocol.preprocessing in (None, *PREPROCESSINGS)
        assert bool(protocol.preprocessing) == any("f" in m and "vd" in m for m in metrics)


def test_clips_are_chosen_without_repeats_until_they_run_out() -> None:
    data = Sprites(11)
    folds = [dataclasses.replace(SMALL, folds=3).choose(data, f)[0] for f in range(3)]
    taken = [i for fold in folds for i in fold]
    assert len(set(taken)) == 11  # the twelfth is the first one again
    assert taken[11] == taken[0]
    first, others = SMALL.choose(data)
    assert len(others) == 4
    assert not {*first} & {*others}
    assert dataclasses.replace(SMALL, order="listed").choose(data)[0] == [0, 1, 2, 3]


def test_too_few_real_clips() -> None:
    data = Sprites(6)
    with pytest.raises(UserError, match=r"asks for 8 real clips .* there are 6\. Use --num-clips"):
        dataclasses.replace(SMALL, num_clips=8).choose(data)
    repeating = dataclasses.replace(SMALL, num_clips=8, too_few="repeat")
    chosen, others = repeating.choose(data)
    assert len(chosen) == 8
    assert set(chosen) == set(range(6))
    assert others == []
    assert dataclasses.replace(SMALL, num_clips=8, too_few="half").available_clips(data) == 3
    assert dataclasses.replace(SMALL, num_clips=None).available_clips(data) == 6
    with pytest.raises(UserError, match="compares with 7 real clips"):
        dataclasses.replace(SMALL, num_real=7).real(data)


def test_a_real_set_of_its_own_and_the_floor_do_not_overlap() -> None:
    data = Sprites(12)
    protocol = dataclasses.replace(SMALL, num_real=5)
    real, (_, others) = protocol.real(data), protocol.choose(data)
    assert real is not None
    assert len(real) == 5
    assert not {*real} & {*others}


def test_other_counts_and_metrics_have_other_names() -> None:
    assert get_protocol("magvit-ucf101").name == "magvit-ucf101"
    assert get_protocol("magvit-ucf101", num_clips=10_000).name == "magvit-ucf101"
    assert get_protocol("magvit-ucf101", num_clips=64).name == "magvit-ucf101-64"
    assert get_protocol("magvit-ucf101", metrics=["kvd"]).name == "magvit-ucf101-kvd"
    mine = get_protocol("clips-generation", metrics=["motion"])
    assert (mine.metrics, mine.optional_metrics) == (("motion",), ())


def test_optional_metrics_change_the_hash_only_if_there_are_some() -> None:
    data = Sprites(8)
    described = SMALL.describe(data)
    assert "optional_metrics" not in described  # hashes are older than this option
    more = dataclasses.replace(SMALL, optional_metrics=("fvd",)).describe(data)
    assert more["hash"] != described["hash"]
    assert more["optional_metrics"] == ["fvd"]


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: nbp-k600-fp\nsummary: mine\nfolds: 4\nclip: {fps: 16}\n")
    mine, base = get_protocol(path), get_protocol("nbp-k600-fp")
    assert (mine.name, mine.folds, mine.metrics) == ("mine", 4, base.metrics)
    assert mine.clip is not None
    assert base.clip is not None
    assert mine.clip == dataclasses.replace(base.clip, fps=16)
    data = Sprites(4)
    small = [dataclasses.replace(p, num_clips=4) for p in (mine, base)]
    assert len({p.describe(data)["hash"] for p in small}) == 2
    assert get_protocol(str(path), num_clips=9).name == "mine-9"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no keys"),
        ("summary: [unclosed", "mine.yaml is not a protocol"),
        ("base: nbp-k600-pf", "Did you mean 'nbp-k600-fp'"),
        ("base: nbp-k600-fp\nfold: 3", "fold: unknown key"),
        ("base: nbp-k600-fp\nfolds: many", "folds: str instead of int"),
        ("base: nbp-k600-fp\norder: sorted", "'sorted' is none of shuffled, listed"),
        ("base: nbp-k600-fp\nclip: {short: loop}", "drop, pad, black"),
        ("task: generation", "summary: missing"),
        ("base: nbp-k600-fp\ncondition_frames: 0", "need condition_frames"),
        ("base: nbp-k600-fp\nscored_frames: 18", "scores frame 18 of clips with 17 frames"),
        ("base: nbp-k600-fp\nddof: 2", "ddof must be 0 to 1, not 2"),
        ("base: nbp-k600-fp\nfolds: 0", "folds must be at least 1, not 0"),
        ("base: nbp-k600-fp\nfolds: 1\nfolds: 2", "duplicate key 'folds' (line 3)"),
        ("base: nbp-k600-fp\nmetrics: []", "no metrics"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        read_protocol(path)
    assert reason in str(caught.value)


def test_frames_that_are_scored() -> None:
    frames = list(range(17))
    cases = {"nbp-k600-fp": range(16), "nbp-ucf101-cg": range(16), "clips-prediction": range(5, 17)}
    for name, expected in cases.items():
        assert frames[get_protocol(name).scored] == list(expected)


def test_every_eighth_frame_is_scored() -> None:
    protocol = get_protocol("stylegan-v-2048-128f-sub8")
    assert list(range(128))[protocol.scored] == list(range(0, 128, 8))
    with pytest.raises(UserError, match="scores frame 129 of clips with 128 frames"):
        dataclasses.replace(protocol, scored_frames=17)
    with pytest.raises(UserError, match="scored at every frame"):
        dataclasses.replace(protocol, task="prediction", condition_frames=1)


def test_options_of_later_versions_change_a_hash_only_if_they_are_used() -> None:
    data = Sprites(8)
    plain = dataclasses.replace(get_protocol("latte-2048-16f"), num_clips=4)
    every = dataclasses.replace(plain, scored_frames=2, scored_every=8)
    described = [p.describe(data) for p in (plain, every)]
    assert [("scored_every" in d, "conditions" in d) for d in described] == [
        (False, False),
        (True, False),
    ]
    acting = dataclasses.replace(plain, conditions=("actions",))
    assert acting.describe(data)["hash"] != described[0]["hash"]


def test_tecos_protocols_give_actions_and_score_what_its_code_scores() -> None:
    names = ("teco-dmlab", "teco-minecraft", "teco-dmlab-fvd", "teco-minecraft-fvd")
    found = [get_protocol(name) for name in names]
    assert [p.conditions for p in found] == [("actions",), ("actions",), (), ("actions",)]
    scored = [len(range(300)[p.scored]) for p in found]
    assert scored == [156, 156, 300, 300]


def test_novas_extrapolation_is_fifty_steps() -> None:
    """200 predicted frames, four a step (arXiv:2412.14169, appendix C)."""
    protocol = get_protocol("nova-extrapolation")
    assert protocol.clip is not None
    predicted = range(protocol.clip.num_frames)[protocol.scored][protocol.predicted]
    assert len(predicted) // protocol.frames_per_step == 50


def test_the_pages_example_is_a_protocol(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text()
    block = page.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / block.splitlines()[0].removeprefix("# ")
    path.write_text(block)
    protocol = read_protocol(path)
    assert protocol.clip is not None
    assert (protocol.folds, protocol.clip.fps) == (4, 16)


def test_the_page_states_what_the_protocols_do() -> None:
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text()
    for name, p in protocols().items():
        clips = "all" if p.num_clips is None else f"{p.num_clips:,}"
        count = f"{clips} x {p.folds}" if p.folds > 1 else clips
        given = f"{p.condition_frames} given" if p.condition_frames else p.task
        if p.clip:
            size = "x".join(map(str, p.clip.height_width))
            fps = "all" if p.clip.fps is None else f"{p.clip.fps:g} fps"
            cut = f"{p.clip.num_frames} @ {size}, {fps}, {p.clip.window}, {p.clip.resize}"
        else:
            cut = "as the setting"
        network = f"{p.preprocessing}, ddof {p.ddof}" if p.preprocessing else ""
        metrics = ", ".join(p.metrics)
        if p.optional_metrics:
            metrics += f"; if possible {', '.join(p.optional_metrics)}"
        line = f"| `{name}` | {given} | {count} | {cut} | {metrics} | {network} |"
        assert line.replace("|  |", "| |") in page


def test_the_papers_protocols_differ_from_the_released_codes_as_its_appendix_says() -> None:
    k600, ucf101 = (get_protocol(f"{name}-paper") for name in ("nbp-k600-fp", "nbp-ucf101-cfp"))
    assert k600.clip is not None
    assert ucf101.clip is not None
    assert (k600.folds, k600.num_clips, k600.paired_size) == (4, 50_000, 64)
    assert (k600.clip.fps, k600.clip.resize, k600.clip.window) == (16, "crop", "random")
    assert (ucf101.folds, ucf101.num_clips, ucf101.clip.window) == (4, 10_000, "random")
