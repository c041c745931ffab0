"""Result records: what is written comes back, and what cannot be read says which file and why."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import arvid
from arvid.contracts import UserError
from arvid.evaluation import records
from arvid.evaluation.records import Budget, ClipEntry, MetricValue, ResultRecord
from arvid.hardware import hardware
from arvid.metrics.rollout import StepCurve


def make_record(**changes: Any) -> ResultRecord:
    values: dict[str, Any] = {
        "name": "nova",
        "row": "trained",
        "factors": {"paradigm": "nova"},
        "setting_hash": "ab12",
        "setting": {"data.size": 32, "optimiser.betas": [0.9, 0.95]},
        "protocol": {"name": "p", "hash": "cd34", "num_clips": 4},
        "metrics": (MetricValue(name="fd", value=12.5, protocol="p", spread=0.5, count=4),),
        "budget": Budget(parameters=1000, evaluations={"transformer": 40, "head": 900}),
        "curve": ({"step": 1.0, "train_loss": 2.0, "val_loss": None},),
        "steps_curve": {"psnr": (None, 20.0)},
        "rollout": {
            "psnr": StepCurve(mean=(20.0,), standard_error=None, num_clips=1, frames_per_step=4)
        },
        "clips": (ClipEntry(file="p/000.mp4", prompt="a <b>", first_frame="p/000.png"),),
    }
    return ResultRecord(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    record = make_record()
    records.save(record, tmp_path / "p.json")
    loaded = records.load(tmp_path / "p.json")
    assert loaded == record
    assert loaded.path("p/000.mp4") == tmp_path / "p/000.mp4"
    stored = json.loads((tmp_path / "p.json").read_text())
    assert stored["format"] == records.FORMAT
    assert "folder" not in stored


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    records.save(make_record(), path)
    content = path.read_text()
    for edited in (
        content.replace("12.5", "0.001"),
        content.replace('"checkpoint_sha256": null', f'"checkpoint_sha256": "{"0" * 64}"'),
        content.replace("checksum", "checksun"),
        json.dumps({k: v for k, v in json.loads(content).items() if k != "checksum"}),
    ):
        assert edited != content
        path.write_text(edited)
        with pytest.raises(UserError, match=r"p\.json: damaged or edited result record"):
            records.load(path)


def test_records_of_older_formats_need_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for number in (1, 2, 3):
        path.write_text(json.dumps(stored(format=number)))
        assert records.load(path).name == "a"
        path.write_text(json.dumps(stored(format=number, checksum="0" * 64)))
        with pytest.raises(UserError, match="checksum: unknown key"):
            records.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="fd"):
        MetricValue(name="fd", value=value, protocol="p")
    with pytest.raises(ValueError, match="not finite"):
        records.save(make_record(wall_seconds=value), tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def stored(**changes: Any) -> dict[str, Any]:
    base = {"format": 1, "name": "a", "row": "trained", "setting_hash": "x", "setting": {}}
    return {**base, "protocol": {"name": "p", "hash": "h"}, **changes}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable"),
        (b"\xff\xfe\x00", "not a readable"),
        (b'{"format": 1, "wall_seconds": NaN}', "NaN"),
        (b"[1, 2]", "states no format"),
        (stored(format=records.FORMAT + 1), "newer arvid"),
        (stored(format=0), "format is 0"),
        (stored(row="other"), "row is 'other'"),
        (stored(surprise=1), "surprise: unknown key"),
        (stored(seed="zero"), "seed: str instead of int"),
        (stored(seed=True), "seed: bool instead of int"),
        (stored(protocol={"name": "p"}), r"protocol\.hash: missing"),
        (stored(metrics=[{"name": "fd", "value": 1}]), r"metrics\[0\]\.protocol: missing"),
        (stored(metrics=[{"name": "fd", "value": 1, "protocol": "q"}]), "of protocol q"),
        (stored(clips=[{"file": "../../secret.mp4"}]), "leads out"),
        (stored(clips=[{"file": "/etc/passwd"}]), "leads out"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=reason) as caught:
        records.load(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json: there is no such"):
        records.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot be read"):
        records.load(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        records.load_run(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no result records"):
        records.load_run(tmp_path)


def test_load_run_reads_all_records_and_no_temporary_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        protocol = {"name": name, "hash": "h"}
        record = make_record(protocol=protocol, metrics=())
        records.save(record, tmp_path / "evaluation" / f"{name}.json")
    (tmp_path / "evaluation" / ".a-half.json").write_text("{")
    assert [r.protocol_name for r in records.load_run(tmp_path)] == ["a", "b"]


def test_hardware_and_code_version_name_something(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "core" in hardware()
    assert records.code_version().startswith(arvid.__version__)
    monkeypatch.setenv("PATH", "")
    assert records.code_version() == arvid.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_an_untracked_copy_states_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records._git(tmp_path, "init")
    copy = tmp_path / "__init__.py"
    copy.touch()
    monkeypatch.setattr(arvid, "__file__", str(copy))
    assert records.code_version() == arvid.__version__
