"""Runs as an evaluation leaves them, with made-up numbers and moving squares for clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from arvid.data.video import write_video
from arvid.evaluation import records
from arvid.evaluation.records import Budget, ClipEntry, MetricValue, ResultRecord

SETTING = {"data.name": "sprites", "data.size": 32, "data.num_frames": 17, "optimiser.lr": 3e-4}
HTML_PROMPT = "<img src=x onerror=alert(1)> moves left"
PROMPTS = (HTML_PROMPT, "a large blue circle bounces", "a small red square moves left")
ATTRIBUTES = ("overall", "shape", "colour", "motion")
REFERENCES = ("real", "reconstruction", "first frame repeated", "untrained")
TRAINED = {
    "nova": ("nova", "continuous"),
    "next_block": ("next_block", "discrete"),
    "next_token": ("next_token", "discrete"),
}
_FD = {"real": 1.2, "reconstruction": 18.4, "first frame repeated": 412.0, "untrained": 903.0}
_FD |= {"nova": 61.3, "next_block": 74.9, "next_token": 68.2}


@pytest.fixture(scope="session")
def make_records() -> Callable[..., list[ResultRecord]]:
    """`make_records(row, prompts)`: the records of a row, captions to video and frame prediction."""
    return lambda name, prompts=(): [
        _caption_record(name, prompts),
        _prediction_record(name, prompts),
    ]


@pytest.fixture(scope="session")
def save_run() -> Callable[[Path, Sequence[ResultRecord]], Path]:
    """`save_run(run, records)`: write records and their clips as a run folder."""
    return _save_run


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, make_records: Callable[..., list[ResultRecord]]
) -> list[Path]:
    """Runs of all rows, trained before reference rows, with clips."""
    folder = tmp_path_factory.mktemp("runs")
    names = (*TRAINED, *REFERENCES)
    return [_save_run(folder / n.replace(" ", "_"), make_records(n, PROMPTS)) for n in names]


def _save_run(run: Path, found: Sequence[ResultRecord]) -> Path:
    """Write records and their clips as a run folder."""
    for number, record in enumerate(found):
        records.save(record, run / records.EVALUATION_FOLDER / f"{record.protocol_name}.json")
        for index, clip in enumerate(record.clips):
            frames = _square_clip(seed=index + 10 * number + len(record.name))
            write_video(run / records.EVALUATION_FOLDER / clip.file, frames, fps=8)
            if clip.first_frame:
                first = _square_clip(seed=index + 10 * number)[0]
                _write_png(run / records.EVALUATION_FOLDER / clip.first_frame, first)
    return run


def _square_clip(seed: int, num_frames: int = 17, size: int = 32) -> np.ndarray:
    """A square that moves over a plain ground: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    video = np.empty((num_frames, size, size, 3), np.uint8)
    video[:] = rng.integers(20, 90, 3)
    colour, (y, x) = rng.integers(120, 255, 3), rng.integers(2, 9, 2)
    for t, frame in enumerate(video):
        frame[y + t // 2 : y + t // 2 + 10, x + t // 2 : x + t // 2 + 10] = colour
    return video


def _write_png(path: Path, frame: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def _common(name: str) -> dict[str, Any]:
    factors = {}
    if name in TRAINED:
        factors = dict(zip(("paradigm", "token_type"), TRAINED[name], strict=True))
    return {
        "name": name,
        "row": "trained" if name in TRAINED else "reference",
        "factors": factors,
        "setting_hash": "5e77ab120c9d",
        "setting": SETTING,
        "curve": _curve(name),
        "checkpoint_sha256": "c0ffee" * 10 if name in TRAINED else None,
        "code_version": "0.1.0+gabcdef0123",
        "hardware": "AMD EPYC, 2 cores",
        "wall_seconds": 41.5,
        "created": "2026-01-02T03:04:05+00:00",
    }


def _caption_record(name: str, prompts: Sequence[str]) -> ResultRecord:
    protocol = {"name": "sprites-t2v", "hash": "11aa22bb33cc", "num_clips": 256, "guidance": 2.0}
    fd = MetricValue(
        name="fd-sprites",
        label="FD (sprites)",
        value=_FD[name],
        spread=_FD[name] / 30,
        count=256,
        higher_is_better=False,
        protocol="sprites-t2v",
        feature_network="sprites-net",
        feature_sha256="fea7" * 16,
    )
    quality = 1 - _FD[name] / 1000
    accuracies = [
        MetricValue(
            name=f"accuracy-{attribute}",
            label=f"accuracy {attribute}",
            value=round(quality**i, 4),
            count=256,
            protocol="sprites-t2v",
        )
        for i, attribute in enumerate(ATTRIBUTES, start=1)
    ]
    return ResultRecord(
        **_common(name),
        protocol=protocol,
        metrics=(fd, *accuracies),
        budget=_budget(name, prefix=0),
        clips=tuple(
            ClipEntry(file=f"sprites-t2v/{i:03d}.mp4", prompt=p) for i, p in enumerate(prompts)
        ),
    )


def _prediction_record(name: str, prompts: Sequence[str]) -> ResultRecord:
    psnr = 34 - 4 * float(np.log10(_FD[name]))
    scores = {"psnr": psnr, "ssim": psnr / 36}
    metrics = (
        ()
        if name == "real"
        else tuple(
            MetricValue(
                name=k,
                label=k.upper(),
                value=v,
                spread=v / 80,
                count=128,
                protocol="sprites-fp",
                unit="dB" if k == "psnr" else "",
            )
            for k, v in scores.items()
        )
    )
    falls: dict[str, tuple[float | None, ...]] = {
        k: tuple(v * (1.2 - 0.02 * t) for t in range(17)) for k, v in scores.items()
    }
    return ResultRecord(
        **_common(name),
        protocol={"name": "sprites-fp", "hash": "44dd55ee66ff", "num_clips": 128, "prefix": 1},
        metrics=metrics,
        budget=_budget(name, prefix=1),
        steps_curve={} if name == "real" else falls,
        clips=tuple(
            ClipEntry(file=f"sprites-fp/{i:03d}.mp4", first_frame=f"sprites-fp/{i:03d}.png")
            for i, _ in enumerate(prompts)
        ),
    )


def _budget(name: str, prefix: int) -> Budget:
    if name in ("real", "reconstruction", "first frame repeated"):
        return Budget()
    frames = 5 - prefix
    evaluations = {
        "next_block": {"transformer": 8 * frames},
        "next_token": {"transformer": 64 * frames},
    }.get(name, {"temporal": frames, "spatial": 16 * frames, "head": 400 * frames})
    return Budget(
        parameters=1_312_000,
        flops_per_generated_clip=1.7e9 * frames,
        evaluations=evaluations,
        frames_per_second=3000 / sum(evaluations.values()),
        training_seconds=None if name == "untrained" else 205.0,
        training_steps=None if name == "untrained" else 1000,
    )


def _curve(name: str) -> tuple[dict[str, float | None], ...]:
    if name not in TRAINED:
        return ()
    scale = 0.7 if name == "nova" else 5.0 + 0.4 * len(name) / 10
    rng = np.random.default_rng(len(name))
    return tuple(
        {
            "step": float(step),
            "train_loss": scale * (1 + 300 / (step + 200)) / 2 + 0.02 * scale * float(rng.normal()),
            "val_loss": scale * (1.05 + 300 / (step + 200)) / 2 if step % 100 == 0 else None,
        }
        for step in range(20, 1001, 20)
    )
