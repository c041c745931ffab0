"""The speed benchmark of tokenizers: its ways compute the same, its checks can fail, its page holds every case."""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from arvid.contracts import UserError
from arvid.nn.causal_conv import CausalConv3d
from arvid.training.export import load_tokenizer

SCRIPT = "speed/video_tokenizers"


def test_no_script_is_in_the_way_of_hugging_faces_package() -> None:
    assert not list((Path(__file__).parents[2] / "benchmarks").rglob("tokenizers.py"))


def test_the_plain_way_computes_the_same_in_another_layout(script: ModuleType) -> None:
    tokenizer = load_tokenizer("sprites-vae3d")
    plain = script.plain(tokenizer)
    video = script.clip((1, 9, 16, 16), "cpu")
    tokens = tokenizer.encode(video)
    torch.testing.assert_close(plain.encode(video), tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.decode(tokens), tokenizer.decode(tokens), rtol=0, atol=1e-4)
    swapped = {type(m).__name__ for m in plain.modules()}
    assert swapped >= {"PlainPointwise", "PlainNorm", "PlainSwish", "PlainDepthToSpace"}
    weights = [m.conv.weight for m in plain.modules() if isinstance(m, CausalConv3d)]
    assert all(w.is_contiguous() for w in weights)
    assert not any(type(m).__name__.startswith("Plain") for m in tokenizer.modules())


@pytest.mark.parametrize("name", ["sprites-vae3d", "sprites-magvit_fsq"])
def test_chunks_are_the_whole(script: ModuleType, name: str) -> None:
    case = {"tokenizer": name, "size": 16, "device": "cpu", "frames": 33, "latents": 2}
    found = script.equal(case)
    assert found["tokens"] < 1e-5
    assert found["pixels"] < 1e-5


def test_every_way_of_building_a_tokenizer(script: ModuleType) -> None:
    for name in ("sprites-vae3d", "magvit_fsq-small"):
        assert script.build({"tokenizer": name, "device": "cpu"}).spec.causal
    with pytest.raises(UserError, match="nothing is no embedded tokenizer"):
        script.build({"tokenizer": "nothing", "device": "cpu"})
    known = {*script.ON_CPU, *script.ON_GPU, *script.STREAMED, *script.COMPILED_ON_CPU}
    for name in known - {"sprites-vae3d", "sprites-magvit_fsq", *script.OTHERS}:
        assert (script.CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's own")
def test_peaks_begin_anew(script: ModuleType) -> None:
    job, size = {"device": "cpu"}, 64 << 20
    for _ in range(2):
        before = script.reset_peak(job)
        with mmap.mmap(-1, size) as block:
            block.write(bytes(size))
            del block
        assert script.peak(job) - before > 60


def test_a_way_that_fails_is_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(video: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory\nand more")

    usual = script.ways

    def ways(tokenizer: Any, job: Any) -> Any:
        return {**usual(tokenizer, job), "huge": (out_of_memory, out_of_memory, torch.float32)}

    monkeypatch.setattr(script, "ways", ways)
    case = {"tokenizer": "sprites-vae3d", "shape": [1, 5, 16, 16], "device": "cpu"}
    case |= {"rounds": 1, "compiled": False}
    rows = script.speed_rows({**case, **script.speed(case)})
    assert len(rows) == 3
    assert rows[2][3:] == ["huge", "failed", "RuntimeError out of memory", ""]


def results(ratio: float, pixels: float) -> list[dict[str, Any]]:
    """What the jobs of one tokenizer found."""
    case = {"tokenizer": "x"}
    peaks = ((33, 2, 100.0), (257, 2, 100.0 * ratio), (257, None, 900.0))
    streams = [
        {"job": "stream", **case, "frames": f, "latents": n, "peak_mb": mb} for f, n, mb in peaks
    ]
    return [*streams, {"job": "equal", **case, "tokens": 0.0, "pixels": pixels}]


@pytest.mark.parametrize(
    ("ratio", "pixels", "holds"),
    [(1.29, 1e-6, True), (1.31, 1e-6, False), (1.0, 2e-5, False)],
)
def test_the_check_of_streams_can_fail(
    script: ModuleType, ratio: float, pixels: float, holds: bool
) -> None:
    assert script.stream_check("x", results(ratio, pixels))["holds"] is holds


def test_the_page(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "run", lambda job: {**job, **script.JOBS[job["job"]](job)})
    monkeypatch.setattr(script, "reset_peak", lambda job: 0.0)  # in one process peaks mean little
    given = ["--tokenizer=sprites-vae3d", "--shape", "1", "5", "16", "16", "--rounds=1"]
    long = ["--no-compile", "--stream-size=16", "--stream-frames", "9", "17", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["video_tokenizers", *given, *long])
    script.main()
    page = (tmp_path / "table.md").read_text()
    assert "| sprites-vae3d | 1 x 5x16x16 | 0.462M | plain |" in page
    assert "| sprites-vae3d | 9, 17 |" in page
    report = json.loads((tmp_path / "results.json").read_text())
    ways = report["speed"][0]["ways"]
    assert ways.keys() == {"plain", "as it is"}
    assert all(way["encode_frames_per_second"] > 0 for way in ways.values())
    assert report["memory"][0].keys() >= {"encode_mb", "decode_mb"}
