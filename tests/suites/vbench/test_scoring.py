"""Scoring a dimension: pooling, what counts, going on where it stopped, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from arvid.contracts import UserError
from arvid.data.video import Video, VideoError, write_video
from arvid.suites.vbench import scoring
from arvid.suites.vbench.dimensions import TemporalFlickering, VideoScore
from arvid.suites.vbench.results import load, load_all, result_path
from arvid.suites.vbench.scoring import score_dimension
from arvid.suites.vbench.suite import Prompt, Take

MakeVideos = Callable[..., list[Take]]


class Scripted:
    """A dimension whose answers are given; it fails when they are used up."""

    def __init__(self, *scores: tuple[float, float]) -> None:
        self.scores = [VideoScore(*score) for score in scores]
        self.networks: dict[str, nn.Module] = {}

    def __call__(self, video: Video, prompt: Prompt) -> VideoScore:
        if not self.scores:
            raise UserError("cannot be scored")
        return self.scores.pop(0)


def score(
    name: str, dimension: object, takes: list[Take], folder: Path, **options: object
) -> float:
    result = score_dimension(
        name, dimension, takes, folder / "videos", folder / "scores", progress=False, **options
    )
    return result.score


def test_frames_weigh_the_videos(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("subject_consistency")
    scripted = Scripted((1.0, 1), (0.5, 3), (0.5, 1), (0.0, 2), (0.0, 1))
    assert score("subject_consistency", scripted, takes, tmp_path) == pytest.approx(3 / 8)
    stored = json.loads(result_path(tmp_path / "scores", "subject_consistency").read_text())
    value, videos, made_with = stored["subject_consistency"]
    assert value == pytest.approx(3 / 8)
    assert [video["video_results"] for video in videos] == [1.0, 0.5, 0.5, 0.0, 0.0]
    assert videos[0]["video_path"] == str(tmp_path / "videos" / "a red square-0.mp4")
    assert made_with["short_prompts"] == 0
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == [
        "subject_consistency_eval_results.json"
    ]


def test_imaging_quality_is_a_hundredth(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("imaging_quality")
    scripted = Scripted(*[(50.0, 1.0)] * 5)
    assert score("imaging_quality", scripted, takes, tmp_path) == pytest.approx(0.5)
    result = load_all(tmp_path / "scores")["imaging_quality"]
    assert result.videos[0]["video_results"] == 50


def test_the_first_five_static_videos_count(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("temporal_flickering", 8)
    answers = [(0.9, 1.0), (0.1, 0.0), (0.8, 1.0), (0.9, 1.0), (0.9, 1.0), (0.8, 1.0), (0.0, 1.0)]
    assert score("temporal_flickering", Scripted(*answers), takes, tmp_path) == pytest.approx(0.86)
    result = load_all(tmp_path / "scores")["temporal_flickering"]
    names = [Path(video["video_path"]).stem[-1] for video in result.videos]
    assert names == ["0", "2", "3", "4", "5"]
    few = Scripted((0.9, 1.0), *[(0.1, 0.0)] * 7)
    result_path(tmp_path / "scores", "temporal_flickering").unlink()
    assert score("temporal_flickering", few, takes, tmp_path) == pytest.approx(0.9)
    assert load_all(tmp_path / "scores")["temporal_flickering"].made_with["short_prompts"] == 1


def test_no_static_video_is_an_error(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("temporal_flickering", 5)
    with pytest.raises(UserError, match="none of the 5 videos is static"):
        score("temporal_flickering", Scripted(*[(0.1, 0.0)] * 5), takes, tmp_path)


def test_an_interrupted_scoring_goes_on(
    make_videos: MakeVideos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_SAVE_EVERY", 2)
    takes = make_videos("subject_consistency")
    with pytest.raises(UserError, match=r"a red square-3.mp4: cannot be scored"):
        score("subject_consistency", Scripted((0.1, 1), (0.2, 1), (0.3, 1)), takes, tmp_path)
    with pytest.raises(UserError, match=r"a red square-0.mp4: cannot be scored"):
        score("subject_consistency", Scripted(), takes, tmp_path, options={"other": True})
    rest = Scripted((0.4, 1), (0.5, 1), (0.6, 1))  # the first two were stored
    found = score("subject_consistency", rest, takes, tmp_path)
    assert found == pytest.approx((0.1 + 0.2 + 0.4 + 0.5 + 0.6) / 5)
    assert score("subject_consistency", Scripted(), takes, tmp_path) == found  # nothing is left


def test_damaged_scores_of_an_interrupted_run_are_made_anew(
    make_videos: MakeVideos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(scoring, "_SAVE_EVERY", 1)
    takes = make_videos("subject_consistency")
    with pytest.raises(UserError, match="the score is nan"):
        score("subject_consistency", Scripted((0.1, 1), (float("nan"), 1)), takes, tmp_path)
    (partial,) = tmp_path.rglob("*_partial.json")
    partial.write_text(partial.read_text().replace("0.1", "0.9"))
    found = score("subject_consistency", Scripted(*[(0.3, 1)] * 5), takes, tmp_path)
    assert found == pytest.approx(0.3)
    assert f"{partial} is damaged" in caplog.text


def test_other_videos_networks_or_options_are_scored_anew(
    make_videos: MakeVideos, tmp_path: Path
) -> None:
    takes = make_videos("subject_consistency")

    def again(value: float, **options: object) -> float:
        return score("subject_consistency", Scripted(*[(value, 1)] * 5), takes, tmp_path, **options)

    assert again(0.1) == again(0.2) == pytest.approx(0.1)
    assert again(0.2, options={"static_filter": False}) == pytest.approx(0.2)
    scripted = Scripted(*[(0.3, 1)] * 5)
    scripted.networks["net"] = nn.Linear(1, 1)
    assert score("subject_consistency", scripted, takes, tmp_path) == pytest.approx(0.3)
    assert again(0.4) == pytest.approx(0.4)
    write_video(tmp_path / "videos" / takes[0].file, np.zeros((3, 32, 48, 3), np.uint8), 8)
    assert again(0.5) == pytest.approx(0.5)


def test_unreadable_videos_and_nan_are_errors(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("subject_consistency")
    with pytest.raises(UserError, match="the score is nan"):
        score("subject_consistency", Scripted((float("nan"), 1)), takes, tmp_path)
    (tmp_path / "videos" / takes[2].file).write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a red square-2.mp4 cannot be read"):
        score("temporal_flickering", TemporalFlickering(), takes, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a result of VBench"),
        ("[]", "an object of dimensions"),
        ('{"sharpness": [1, []]}', "'sharpness' is not a dimension"),
        ('{"scene": 0.5}', "not a score with a list of videos"),
        ('{"scene": [NaN, []]}', "is nan, not a finite number"),
        ('{"scene": ["0.5", []]}', "'0.5', not a finite number"),
        ('{"scene": [0.5, [1]]}', "without video_path"),
    ],
)
def test_results_that_are_none_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x_eval_results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_results_of_the_package_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        load_all(tmp_path)
    row = [{"video_path": "v/alley-0.mp4", "video_results": True}]
    first = {"temporal style": [0.25, []], "scene": [0.5, row]}
    (tmp_path / "a_eval_results.json").write_text(json.dumps(first))
    found = load_all(tmp_path)
    assert [(name, result.score) for name, result in found.items()] == [
        ("scene", 0.5),
        ("temporal_style", 0.25),
    ]
    (tmp_path / "b_eval_results.json").write_text(json.dumps({"scene": [0.6, row]}))
    with pytest.raises(UserError, match=r"another file of .* also has a score of scene"):
        load_all(tmp_path)
