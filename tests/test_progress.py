"""Progress in logs: lines at growing intervals that other programs can read, never a control character."""

from __future__ import annotations

import io

import pytest

from arvid.progress import FIRST_SECONDS, Bar, Line, last_line


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr("arvid.progress.time.monotonic", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def test_a_log_gets_lines_ever_more_rarely(
    capsys: pytest.CaptureFixture[str], clock: _Clock
) -> None:
    with Bar(work="run", total=4000, unit="step", leave=True) as bar:
        for step in range(4000):
            clock.now += 1.0
            bar.set_postfix_str(f"train_loss {step}", refresh=False)
            bar.update()
    text = capsys.readouterr().err
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0].startswith(f"run: {FIRST_SECONDS:.0f}/4000 steps, train_loss 4, 1.00 steps/s, ")
    assert lines[0].endswith(" left")
    assert len([line for line in lines if line.startswith("run: 4000/4000")]) == 1
    assert 40 < len(lines) < 120  # one each 5 s at first, one each 200 s at last
    assert lines[-1] == "run: 4000/4000 steps, train_loss 3999, 1.00 steps/s, 1:06:40 in all"


def test_the_last_line_is_the_only_one_of_its_kind_and_has_the_mean_speed(
    capsys: pytest.CaptureFixture[str], clock: _Clock
) -> None:
    with Bar(work="run", total=3, unit="step", leave=True) as bar:
        for seconds in (1.0, 1.0, 4.0):
            clock.now += seconds
            bar.update()
        clock.now += 24.0  # saving
    assert capsys.readouterr().err == "run: 3/3 steps, 10.0 s/step, 00:30 in all\n"


def test_short_work_leaves_a_log_empty(capsys: pytest.CaptureFixture[str], clock: _Clock) -> None:
    for _ in Bar(range(3), "clips", 3):
        clock.now += 1.0
    for _ in Bar([], "no clips", 0, leave=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_slow_rate_is_seconds_per_unit(capsys: pytest.CaptureFixture[str], clock: _Clock) -> None:
    for _ in Bar(range(3), "scored", 3, unit="batch"):
        clock.now += 20.0
    assert "scored: 3/3 batches, 20.0 s/batch" in capsys.readouterr().err


def test_a_terminal_gets_its_line_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    for _ in Bar(range(3), "clips", 3):
        pass
    *_, erased, after = terminal.getvalue().split("\r")
    assert erased.isspace()
    assert after == ""


def test_the_last_line_is_found_among_others() -> None:
    log = "nova: 3/9 steps, train_loss 2.5, 1.00 steps/s, 00:06 left\nsetting: none\nencoding"
    expected = Line("nova", "3/9", "steps", "train_loss 2.5, 1.00 steps/s, 00:06 left")
    assert last_line(log) == expected
    assert last_line("Trained 3 steps") is None
