"""Options of `arvid fit` that mean nothing: one line that names the option as it was given, before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from lightning import Trainer

from arvid.cli import main
from arvid.training.option_ranges import RANGES

GIVEN = [
    *("fit", "--config=settings/sprites", "--config=paradigms/nova", "--config=sizes/debug"),
    *("--data.train.init_args.num_clips=4", "--data.val.init_args.num_clips=4"),
    *("--data.clips_per_step=2", "--trainer.accelerator=cpu", "--trainer.max_steps=1"),
]
NOVA = "model.init_args.paradigm.init_args"

REFUSED = [
    ("seed_everything=-1", "seed_everything must be 0 to 4294967295, not -1."),
    ("save_every_n_steps=0", "save_every_n_steps must be at least 1, not 0."),
    ("keep_checkpoints=0", "keep_checkpoints must be at least 1, not 0."),
    ("trainer.max_steps=0", "trainer.max_steps must be at least 1, not 0."),
    ("trainer.max_steps=-2", "trainer.max_steps must be at least 1, not -2."),
    ("trainer.devices=1000000000000000000000000000000", "trainer.devices must be below 2**63."),
    ("trainer.devices=0", "trainer.devices must be at least 1, not 0."),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be at least 0, not -1"),
    ("trainer.gradient_clip_val=.nan", "trainer.gradient_clip_val must be a finite number"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be at least 1"),
    ("trainer.val_check_interval=0", "trainer.val_check_interval must be above 0, not 0"),
    ("trainer.accelerator=x", "trainer: "),
    ("trainer.strategy=x", "trainer: "),
    ("trainer.precision=x", "precision"),
    ("data.batch_size=0", "data.batch_size must be at least 1, not 0."),
    ("data.num_workers=-1", "data.num_workers must be at least 0, not -1."),
    ("data.seed=-1", "data.seed must be at least 0, not -1."),
    ("data.train.init_args.num_clips=0", "num_clips must be at least 1, not 0."),
    ("data.train.init_args.second=.inf", "second must be"),
    ("model.init_args.size.dim=0", "size.dim must be at least 1, not 0."),
    ("model.init_args.size.head_depth=-1", "size.head_depth must be at least 0, not -1."),
    ("model.init_args.optimizer.lr=.nan", "model.init_args.optimizer.lr must be a finite number"),
    ("model.init_args.optimizer.lr=0", "optimizer.lr must be above 0, not 0"),
    ("model.init_args.sampling.top_k=0", "top_k must be at least 1, not 0."),
    (f"{NOVA}.num_sets=0", "num_sets must be at least 1, not 0."),
    (f"{NOVA}.num_sets=-1", "num_sets must be at least 1, not -1."),
    (f"{NOVA}.condition_dropout=-1", "condition_dropout must be 0 to 1, not -1"),
    (f"{NOVA}.diffusion.repeats=0", "diffusion.repeats must be at least 1, not 0."),
]


@pytest.mark.parametrize(("option", "message"), REFUSED)
def test_options_that_mean_nothing(
    tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GIVEN, f"--run={tmp_path}/run", f"--{option}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("arvid: error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("token_type", "kind", "other"),
    [("continuous", "continuous", "magvit_fsq"), ("discrete", "continuous", "magvit_fsq")],
)
def test_a_tokenizer_of_the_other_kind(
    tmp_path: Path,
    token_type: str,
    kind: str,
    other: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where this run takes the other one of the setting's two."""
    more = [
        f"--model.init_args.tokenizers.{kind}=sprites-{other}",
        f"--model.init_args.token_type={token_type}",
    ]
    assert main([*GIVEN, f"--run={tmp_path}/run", *more]) == 2
    expected = "model.tokenizers.continuous names sprites-magvit_fsq, whose tokens are discrete."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["junk", "list", "dict", "none", "folder"])
def test_a_checkpoint_path_that_leads_to_none(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.ckpt"
    if kind == "junk":
        path.write_bytes(b"junk")
    elif kind in ("list", "dict"):
        torch.save([1] if kind == "list" else {"state_dict": {}}, path)
    elif kind == "folder":
        path.mkdir()
    assert main([*GIVEN, f"--run={tmp_path}/run", f"--ckpt_path={path}"]) == 2
    assert str(path) in capsys.readouterr().err


def test_every_numeric_option_of_the_trainer_has_a_range() -> None:
    hints = get_type_hints(Trainer.__init__)
    numeric = {name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
    assert {f"trainer.{name}" for name in numeric} <= RANGES.keys()


def test_a_run_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*GIVEN, f"--run={tmp_path}/file"]) == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err


def test_other_commands_explain_a_configuration_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "odd.yaml"
    config.write_text("data: {batchsize: 3}\n")
    encode = ["encode", "--config=settings/sprites", f"--config={config}"]
    for command in (encode, ["data", "check", "settings/sprites", str(config)]):
        assert main(command) == 2
        assert "batchsize" in capsys.readouterr().err
