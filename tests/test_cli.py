"""The command line: bad input of any kind gives one clear line and exit code 2, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from arvid.cli import COMMANDS, main
from arvid.commands._suites import SUITES
from arvid.data.sprites import Sprites
from arvid.data.video import read_video, write_video
from arvid.evaluation.records import load_run

SETTING = ["--config=settings/sprites", "--config=paradigms/nova", "--config=sizes/debug"]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on stderr, having failed with exit code 2 and without a traceback."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:  # how argument parsers leave
        code = int(stop.code or 0)
    assert code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("fit", "validate")])
def test_every_command_helps_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"arvid {command}" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'trian'" in error_of(["trian"], capsys)


def test_unknown_configuration_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["fit", "--config=settings/sprite"], capsys)
    assert "Did you mean 'settings/sprites'?" in message


def test_unreadable_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("trainer: [unclosed\n")
    assert "bad.yaml" in error_of(["fit", f"--config={config}"], capsys)


def test_unknown_key_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["fit", *SETTING, "--data.batchsize=3"], capsys)
    assert "batchsize" in message


def test_unknown_paradigm_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--model.init_args.paradigm.class_path=arvid.paradigms.nova.NOVAA"
    assert "Did you mean 'arvid.paradigms.nova.NOVA'?" in error_of(["fit", *SETTING, given], capsys)


def test_a_clip_length_that_the_tokenizer_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [f"--data.{part}.init_args.num_frames=16" for part in ("train", "val")]
    message = error_of(["fit", *SETTING, f"--run={tmp_path}/r", *frames], capsys)
    assert "16 frames do not fit this tokenizer: it takes 1 + 4·n frames" in message
    assert "13 and 17" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [("nothing", "nothing"), ("empty", "no video")],
)
def test_missing_and_empty_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    place = [
        option
        for part in ("train", "val")
        for option in (
            f"--data.{part}.class_path=arvid.data.folder.VideoFolder",
            f"--data.{part}.init_args.root={tmp_path / data}",
        )
    ]
    message = error_of(["fit", *SETTING, f"--run={tmp_path}/r", *place], capsys)
    assert str(tmp_path / data) in message
    assert reason in message


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["sample", f"--checkpoint={tmp_path}/run.ckpt"], capsys)
    assert f"{tmp_path}/run.ckpt: there is no such checkpoint" in message


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    message = error_of(["sample", f"--checkpoint={tmp_path}/x.ckpt"], capsys)
    assert "x.ckpt: not a checkpoint that can be read safely" in message


def test_the_checkpoint_of_a_run_with_another_tokenizer(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [
        "fit",
        "--config=settings/sprites",
        "--config=paradigms/next_block",
        "--config=sizes/debug",
        "--trainer.accelerator=cpu",
        "--data.train.init_args.num_clips=4",
        "--data.val.init_args.num_clips=4",
        "--model.init_args.token_type=continuous",
        f"--run={tmp_path}",
        f"--ckpt_path={trained_run / 'checkpoints/last.ckpt'}",
    ]
    message = error_of(other, capsys)
    assert "token_type: 'discrete' there, 'continuous' here" in message


def test_a_prompt_that_is_too_long(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["sample", f"--checkpoint={trained_run}", "--prompt", "very " * 40], capsys)
    assert "40 words; this model was built for at most" in message


def test_a_condition_that_the_model_does_not_know(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["sample", f"--checkpoint={trained_run}", "--label=3"], capsys)
    assert "--label was given, but this model was trained without" in message


def test_a_frame_count_that_is_not_1_plus_4n(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["sample", f"--checkpoint={trained_run}", "--frames=16"], capsys)
    assert "the nearest are 13 and 17" in message


def test_an_unreadable_first_frame(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "broken.mp4"
    video.write_bytes(b"")
    message = error_of(["sample", f"--checkpoint={trained_run}", f"--first-frames={video}"], capsys)
    assert "broken.mp4" in message


def test_unknown_protocol_and_benchmark(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["evaluate", str(trained_run), "--protocol=sprite-generation"], capsys)
    assert "Did you mean 'sprites-generation'?" in message
    assert "Did you mean 'demo'?" in error_of(["bench", "demmo"], capsys)


def test_sample_writes_clips_and_a_sheet(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first.mp4"
    write_video(first, Sprites(1, size=64)[0].video, 8)
    given = ["sample", f"--checkpoint={trained_run}", "--prompt=a red square", "--count=2"]
    code = main([*given, f"--first-frames={first}", "--frames=13", f"--out={tmp_path}/out"])
    assert code == 0
    assert (
        "2 clips of 13 frames, network evaluations per clip:\n  24 transformer\n"
        in capsys.readouterr().out
    )
    assert len(read_video(tmp_path / "out/001.mp4").frames) == 13
    assert (tmp_path / "out/sheet.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_and_compare(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocols = ["--protocol=sprites-generation", "--protocol=sprites-prediction"]
    references = tmp_path / "references"
    given = ["evaluate", str(trained_run), *protocols, "--num-clips=4"]
    assert main([*given, f"--references={references}"]) == 0
    runs = [str(path) for path in (*sorted(references.iterdir()), trained_run)]
    assert len(runs) == 5
    assert main(["compare", *runs, f"--out={tmp_path}/report"]) == 0
    table = capsys.readouterr().out
    for row in ("real", "reconstruction (discrete)", "first frame repeated", "untrained"):
        assert row in table
    page = (tmp_path / "report/index.html").read_text()
    assert "data:video/mp4;base64," in page


@pytest.mark.parametrize("suite", SUITES)
def test_benchmark_suites_have_commands_of_their_own(
    suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", suite, "--help"])
    assert stop.value.code == 0
    assert f"usage: arvid evaluate {suite}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--protocol=clips-generation"], "Name what is scored"),
        (["--videos=x"], "at least one --protocol"),
        (["--videos=x", "--pipeline=y", "--protocol=magvit-ucf101"], "Name what is scored"),
        (["--videos=x", "--protocol=magvit-ucf101"], "--real: UCF-101 trainlist01"),
        (["--videos=x", "--protocol=magvit-ucf101", "--real-list=y"], "give --real too"),
        (["--videos=x", "--protocol=mine.yaml"], "mine.yaml is not a protocol"),
    ],
)
def test_what_evaluate_cannot_do_without(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in error_of(["evaluate", *arguments], capsys)


def test_a_run_under_a_protocol_with_clips_of_its_own(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = tmp_path / "own.yaml"
    protocol.write_text(
        "summary: own\ntask: prediction\nmetrics: [psnr]\nnum_clips: 2\ncondition_frames: 1\n"
        "clip: {num_frames: 16, size: 32}\n"
    )
    given = ["evaluate", str(trained_run), f"--protocol={protocol}"]
    assert "needs real clips: --real" in error_of(given, capsys)
    for i, clip in enumerate(Sprites(4, size=40)):
        write_video(tmp_path / f"real/{i}.mp4", clip.video, 8)
    assert main([*given, f"--real={tmp_path / 'real'}"]) == 0
    (record,) = [r for r in load_run(trained_run) if r.protocol_name == "own"]
    assert len(record.steps_curve["psnr"]) == 16  # of the 17 that the tokenizer makes
    assert record.row == "trained"
    reconstruction = tmp_path / "recon.yaml"
    reconstruction.write_text(
        "summary: r\ntask: reconstruction\nmetrics: [psnr]\nclip: {num_frames: 17, size: 32}\n"
    )
    real = f"--real={tmp_path / 'real'}"
    assert main(["evaluate", str(trained_run), f"--protocol={reconstruction}", real]) == 0
    found = [r for r in load_run(trained_run) if r.protocol_name == "recon"]
    assert [(r.name, r.metrics[0].count) for r in found] == [("reconstruction (next_block)", 4)]
    for name in ("own", "recon"):  # the run is shared with other tests
        (trained_run / f"evaluation/{name}.json").unlink()


def test_list_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list-protocols"]) == 0
    lines = {line.split(" ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= {"sprites-generation", "magvit-ucf101", "arvid-1024-16f"}
    assert lines["nbp-k600-fp"].split()[1:3] == ["prediction", "50,000"]
    assert main(["evaluate", "--list-protocols", "--protocol", "nbp-k600-fp"]) == 0
    listed = yaml.safe_load(capsys.readouterr().out)
    assert listed.keys() == {"nbp-k600-fp"}
    assert listed["nbp-k600-fp"]["clip"]["fps"] == 25


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arvid", "--help"], capture_output=True, text=True, check=True
    )
    assert "compare" in done.stdout


@pytest.mark.parametrize("command", [["doctor"], ["evaluate", "--list-protocols"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_may_end_first(command: list[str], unbuffered: str) -> None:
    """As in `arvid doctor | head -1`: no message, and nothing that looks like success."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "arvid", *command],
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_outputs_may_be_closed() -> None:
    """As some schedulers start programs."""
    command = f"{sys.executable} -m arvid doctor >&- 2>&-"
    closed = subprocess.run(["sh", "-c", command])
    usual = subprocess.run([sys.executable, "-m", "arvid", "doctor"], stdout=subprocess.DEVNULL)
    assert closed.returncode == usual.returncode
    command = f"{sys.executable} -m arvid evaluate --list-protocols >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_bench_lists_its_scripts_in_one_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["bench"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert lines[0].startswith("demo  ")
        assert next(line for line in lines if line.startswith("nova/image_to_video  "))
