"""`arvid.load` and `sample`: the same clips as the command, and errors that say what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import arvid
from arvid.api.clips import Clips
from arvid.api.model import Model
from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

PROMPT = "a large red square moves left"


@pytest.fixture(scope="module")
def model(trained_run: Path) -> Model:
    return arvid.load(str(trained_run))


def test_the_clips_are_those_of_the_command(model: Model, tmp_path: Path) -> None:
    first = tmp_path / "first.mp4"
    write_video(first, Sprites(1, size=64)[0].video, 8)
    given = ["sample", "--checkpoint", str(model.path), "--prompt", PROMPT, "--count", "2"]
    given += ["--guidance", "2", "--seed", "3", "--frames", "1", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    clips = model.sample(PROMPT, count=2, frames=1, seed=3, options={"guidance": 2.0})
    for i, clip in enumerate(clips):
        written = cv2.imread(str(tmp_path / f"out/{i:03d}.png"))
        assert np.array_equal(cv2.cvtColor(written, cv2.COLOR_BGR2RGB), clip[0])
    assert not np.array_equal(clips, model.sample(PROMPT, count=2, frames=1, seed=4))


def test_prompts_and_first_frames(model: Model, tmp_path: Path) -> None:
    video = Sprites(1, size=32)[0].video
    clips = model.sample([PROMPT, "a large blue circle"], frames=9, first_frames=video[:1])
    assert clips.shape == (2, 9, 32, 32, 3)
    assert np.array_equal(clips[0][0], clips[1][0])  # both begin with the given frame
    assert np.asarray(clips).dtype == np.uint8
    write_video(tmp_path / "v.mp4", np.repeat(video.repeat(2, 1), 2, 2), 8)
    again = model.sample(PROMPT, frames=9, first_frames=tmp_path / "v.mp4", num_first_frames=5)
    assert again.shape == (1, 9, 32, 32, 3)


def test_what_a_model_does_not_have(model: Model) -> None:
    for reason, arguments in {
        "no sampling option guidence. It has guidance": {"options": {"guidence": 2.0}},
        "label was given, but this model was trained without": {"conditions": {"label": 3}},
        "'lable'": {"conditions": {"lable": 3}},
        "the nearest are 13 and 17": {"frames": 16},
        "first_frames must be uint8": {"first_frames": np.zeros((1, 32, 32, 3))},
        "count must be": {"count": 0},
        "list of prompts is empty": {"prompt": []},
    }.items():
        with pytest.raises(UserError, match=re.escape(reason)):
            model.sample(**arguments)
    with pytest.raises(UserError, match="no such checkpoint"):
        arvid.load("runs/nothing")


def test_it_says_what_it_is(model: Model) -> None:
    assert re.fullmatch(
        r"Model\(next_block: next_block, discrete, debug; 0\.\d+ M parameters; 17 frames of 32x32; "
        r"conditions: text\)",
        repr(model),
    )


def test_clips_show_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = Clips(rng.integers(0, 256, (2, 5, 32, 32, 3), np.uint8), ("<b>one</b>", "two"))
    page = clips._repr_html_()
    assert page.count('src="data:video/mp4;base64,') == 2
    assert "&lt;b&gt;one" in page
    assert "<b>" not in page
    assert 'src="data:image/png;base64,' in Clips(clips.array[:, :1])._repr_html_()
    assert [path.name for path in clips.save(tmp_path)] == ["000.mp4", "001.mp4"]
    assert all(path.is_file() for path in [*clips.save(tmp_path), tmp_path / "sheet.png"])


def test_importing_arvid_is_quick() -> None:
    listed = "import arvid, sys; print(*dir(arvid)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True)
    names, modules = done.stdout.splitlines()
    assert {"load", "evaluate", "compare", "plot", "push", "tokenize", "detokenize"} <= set(
        names.split()
    )
    assert not {"numpy", "torch", "arvid.api"} & set(modules.split())
