"""Which share of a sampling a process draws."""

from __future__ import annotations

import argparse

import pytest

from arvid.commands._flags import add_shard_argument


def share(*arguments: str) -> tuple[int, int]:
    parser = argparse.ArgumentParser()
    add_shard_argument(parser, "video")
    return parser.parse_args(arguments).shard


def test_shards_come_from_the_option_or_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert share() == (0, 1)
    assert share("--shard=3/8") == (3, 8)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert share() == (2, 4)
    assert share("--shard=3/8") == (3, 8)


@pytest.mark.parametrize("text", ["8/8", "1", "-1/2", "a/b", "1/", "1/0"])
def test_what_is_no_share_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        share(f"--shard={text}")
    assert (
        f"argument --shard: must be I/N with I below N, as in 0/4, not {text!r}"
        in capsys.readouterr().err
    )
