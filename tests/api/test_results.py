"""Results: rows of plain values, in the form that pandas reads, from the records alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import arvid
from arvid.api.results import Results
from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.evaluation.records import load_run


def test_scores_are_those_of_the_record(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    shutil.copytree(trained_run, run)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    results = arvid.evaluate(str(run), "sprites-prediction", num_clips=4, metrics=["psnr"])
    (record,) = load_run(run)
    assert [(row["name"], row["row"], row["paradigm"]) for row in results] == [
        ("mine", "trained", "next_block")
    ]
    key = f"{record.protocol_name}/psnr"
    assert results[0][key] == record.metrics[0].value
    assert results[0][f"{key} spread"] == record.metrics[0].spread
    assert f"{record.metrics[0].value:.4g} ±" in str(results)
    compared = arvid.compare(str(tmp_path / "m*"), out=tmp_path / "report")
    assert compared[0][key] == record.metrics[0].value
    assert (tmp_path / "report/index.html").is_file()
    with pytest.raises(UserError, match="there is no such folder"):
        arvid.compare(str(tmp_path / "x*"))


def test_rows_have_the_same_keys() -> None:
    results = Results(
        (
            {"name": "a", "p/x": 1.0, "p/x spread": 0.25},
            {"name": "b<", "p/x": None, "p/x spread": None},
        )
    )
    assert isinstance(results, Sequence)
    assert results.to_dict() == {
        "name": ["a", "b<"],
        "p/x": [1.0, None],
        "p/x spread": [0.25, None],
    }
    assert str(results).splitlines()[1] == "a     1 ± 0.25"
    assert "<td>b&lt;</td>" in results._repr_html_()


def test_pandas_reads_them() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(Results(({"name": "a", "p/x": 1.0}, {"name": "b", "p/x": 2.0})))
    assert list(frame.columns) == ["name", "p/x"]
    assert frame["p/x"].mean() == 1.5


def test_tokens_of_paths_and_arrays(tmp_path: Path) -> None:
    videos = np.stack([clip.video for clip in Sprites(2, size=32, num_frames=9)])
    ids = arvid.tokenize(videos, "sprites-magvit_fsq")
    assert (ids.shape, ids.dtype) == ((2, 3, 8, 8), np.int64)
    assert np.array_equal(ids, arvid.tokenize(list(videos), "sprites-magvit_fsq"))
    assert np.array_equal(ids[:, :2], arvid.tokenize(videos, "sprites-magvit_fsq", frames=5))
    decoded = np.asarray(arvid.detokenize(ids, "sprites-magvit_fsq")).astype(float)
    assert np.abs(decoded - videos).mean() < 10
    for reason, given in {"uint8": videos / 255, "multiple of 4": videos[..., :31, :]}.items():
        with pytest.raises(UserError, match=reason):
            arvid.tokenize(given, "sprites-vae3d")
    with pytest.raises(UserError, match="differ in shape"):
        arvid.tokenize([videos[0], videos[1][:5]], "sprites-vae3d")
    with pytest.raises(UserError, match="continuous: 5 axes"):
        arvid.detokenize(ids, "sprites-vae3d")
