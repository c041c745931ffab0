"""Flags of the commands that generate: those of the model that the command line names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from arvid.cli import main
from arvid.commands import sample, vbench
from arvid.commands._flags import chosen_dtype
from arvid.commands._sampling import CommandParser, sampling_options
from arvid.errors import UserError
from arvid.options import SamplingOptions
from arvid.training import generator_module
from arvid.training.generator_module import load_sampling


def parsed(add_arguments: Callable[[CommandParser], None], *arguments: str) -> Namespace:
    parser = CommandParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error message of a command line that argparse refuses."""
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_flags_change_the_options_of_the_checkpoint(trained_run: Path) -> None:
    own = load_sampling(trained_run)
    flags = ("--top-k=3", "--rounds", "2", "--no-use-cache", "--compiled", "--guidance=-1")
    given = parsed(sample.add_arguments, f"--checkpoint={trained_run}", *flags)
    changes = {"top_k": 3, "rounds": 2, "use_cache": False, "compiled": True, "guidance": -1.0}
    assert own.changed() == {"guidance": 3.0, "top_p": 0.9}
    assert sampling_options(given, own) == own.replace(**changes)


def test_values_of_flags_are_not_taken_for_a_folder(trained_run: Path) -> None:
    words = ["sample", "--top-k", "3", "row", "--suite=s", "--checkpoint", str(trained_run)]
    given = parsed(vbench.add_arguments, *words)
    assert given.folder == Path("row")
    assert sampling_options(given, load_sampling(trained_run)).changed()["top_k"] == 3


def test_help_lists_the_options_of_the_model(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for arguments in ([], ["--checkpoint", str(trained_run)]):
        with pytest.raises(SystemExit):
            main(["sample", *arguments, "--help"])
        texts.append(" ".join(capsys.readouterr().out.split()))
    plain, own = texts
    assert "--guidance X" in plain
    assert "--rounds" not in plain
    assert "--checkpoint RUN --help" in plain
    assert "--rounds N Evaluations for each block; 1 as published." in own
    assert "of all more likely ones is at most p. (default: 0.9)" in own
    assert "--num-sets" not in own


def test_an_option_that_the_model_lacks_is_refused_with_those_that_it_has(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("sample", f"--checkpoint={trained_run}")
    message = fails(capsys, *given, "--diffusion-steps", "3")
    assert "unrecognized arguments: --diffusion-steps 3. The sampling options are " in message
    assert "--temperature, --top-k, --top-p, --last-temperature, --rounds, --overlap" in message
    assert "Did you mean --temperature? " in fails(capsys, *given, "--tempreature=1")
    assert "Did you mean --count? " in fails(capsys, *given, "--cuont=1")
    assert "--top-k: must be at least 1, not 0" in fails(capsys, *given, "--top-k=0")


def test_options_of_any_plain_type_become_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(SamplingOptions):
        order: Literal["rows", "columns"] = "rows"
        note: str = "50 %"

    monkeypatch.setattr(generator_module, "load_sampling", lambda *_, **__: Own())
    given = parsed(sample.add_arguments, "--checkpoint=x", "--order=columns", "--note=a")
    assert sampling_options(given, Own()) == Own(order="columns", note="a")


def test_an_option_may_not_be_called_as_one_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(SamplingOptions):
        count: int = 1

    monkeypatch.setattr(generator_module, "load_sampling", lambda *_, **__: Own())
    with pytest.raises(UserError, match="option count is also one of the command's"):
        parsed(sample.add_arguments, "--checkpoint=x")


def test_the_type_of_weights_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen_dtype("float16") == "float16"
    assert chosen_dtype("auto") == "float32"
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    before = torch.get_float32_matmul_precision()
    try:
        assert chosen_dtype("auto") == "bfloat16"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert "bfloat16 weights" in capsys.readouterr().out
