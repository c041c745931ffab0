"""The harness: what the reference rows mean, what a record holds, which frames are looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.clips import ClipSpec
from arvid.data.collate import normalise, to_uint8
from arvid.data.sprites import Sprites
from arvid.data.video import read_video
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.records import ResultRecord, load, load_run
from arvid.evaluation.row_kinds import FirstFrameRow, ModelRow, RealRow, ReconstructionRow, Row
from arvid.evaluation.rows import evaluate_references, evaluate_run, validation_set
from arvid.files import sha256_file
from arvid.metrics.sprites_net import ASSET
from arvid.report.comparison import Comparison
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator

DATA = Sprites(80, seed=1)
OF_SETTINGS = ("sprites-generation", "sprites-prediction", "clips-generation", "clips-prediction")
"""The protocols that take the validation set of a run's setting."""
DESCRIPTION: dict[str, Any] = {"setting": {"seed": 0}, "setting_hash": "abc"}
GENERATION = Protocol(
    name="generation",
    summary="",
    task="generation",
    num_clips=40,
    metrics=("fd-sprites", "attributes"),
    too_few="half",
    batch_size=16,  # the last batch is smaller
)
PREDICTION = Protocol(
    name="prediction",
    summary="",
    task="prediction",
    num_clips=3,
    metrics=("psnr", "ssim"),
    condition_frames=5,
    batch_size=2,
)


def score(row: Row, protocol: Protocol, folder: Path, data: VideoDataset = DATA) -> ResultRecord:
    return evaluate(row, protocol, data, folder, description=DESCRIPTION, progress=False)


def values(record: ResultRecord) -> dict[str, float]:
    return {metric.name: metric.value for metric in record.metrics}


class Altered(Row):
    """The real clips with some frames painted black."""

    def __init__(self, black: slice) -> None:
        super().__init__("altered", {})
        self.black = black

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> NDArray[np.uint8]:
        videos = np.stack([clip.video for clip in clips])
        videos[:, self.black] = 0
        return videos


def test_real_clips_are_the_floor_of_the_distance(tmp_path: Path) -> None:
    real = values(score(RealRow(DATA, GENERATION), GENERATION, tmp_path / "real"))
    still = values(score(FirstFrameRow(), GENERATION, tmp_path / "still"))
    assert real["fd-sprites"] < still["fd-sprites"]
    assert real["motion-accuracy"] > still["motion-accuracy"]
    assert values(score(Altered(slice(0)), GENERATION, tmp_path / "same"))[
        "fd-sprites"
    ] == pytest.approx(0, abs=1e-6)


def test_real_clips_are_judged_by_their_own_attributes(tmp_path: Path) -> None:
    row = RealRow(DATA, GENERATION)
    record = score(row, GENERATION, tmp_path)
    assert values(record)["attribute-accuracy"] > 90
    compared, others = GENERATION.choose(DATA)
    assert not {*compared} & {*others}
    assert [c.prompt for c in record.clips] == [DATA[i].caption for i in compared[:8]]
    clips = [DATA[i] for i in range(3)]
    videos = row.generate(clips, GENERATION, 1)
    np.testing.assert_array_equal(videos[2], DATA[others[16 + 2]].video)
    assert [c.name for c in row.target_clips(clips)] == [DATA[i].name for i in others[16:19]]


def test_reconstructions_are_what_the_tokenizer_makes_of_the_real_clips(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("sprites-vae3d")
    row = ReconstructionRow(tokenizer)
    videos = row.generate([DATA[0], DATA[1]], PREDICTION, 0)
    tokens = tokenizer.encode(normalise(DATA[1].video)[None])
    expected = to_uint8(tokenizer.decode(tokens))[0].numpy()
    assert np.abs(videos[1].astype(int) - expected).max() <= 1
    assert values(score(row, PREDICTION, tmp_path))["psnr"] < 100
    assert row.factors == {"token_type": "continuous"}


def test_the_last_given_frame_stands_still() -> None:
    clips = [DATA[0], DATA[1]]
    for protocol, frame in ((PREDICTION, 4), (GENERATION, 0)):
        videos = FirstFrameRow().generate(clips, protocol, 0)
        for clip, video in zip(clips, videos, strict=True):
            assert (video == clip.video[frame]).all()


def test_only_frames_after_the_given_ones_are_looked_at(tmp_path: Path) -> None:
    given = score(Altered(slice(0, 5)), PREDICTION, tmp_path / "a")
    assert values(given)["psnr"] == 100
    after = score(Altered(slice(5, 6)), PREDICTION, tmp_path / "b")
    assert values(after)["psnr"] < 100
    curve = after.steps_curve["psnr"]
    assert curve[:5] == (None,) * 5
    assert len(curve) == 17
    assert (curve[5] or 100) < 50
    assert curve[6:] == (100,) * 11
    assert [(m.name, m.count) for m in after.metrics] == [("psnr", 3), ("ssim", 3)]


def test_predictions_are_curves_over_steps_too(tmp_path: Path) -> None:
    """Steps of four frames after the given ones, of the clips of all folds."""
    protocol = dataclasses.replace(PREDICTION, frames_per_step=4, folds=2)
    record = score(Altered(slice(9, 13)), protocol, tmp_path)
    assert record.rollout.keys() == {"psnr", "ssim"}
    curve = record.rollout["psnr"]
    assert (len(curve.mean), curve.num_clips, curve.frames_per_step) == (3, 6, 4)
    assert curve.mean[::2] == (100, 100)
    by_frame = [x for x in record.steps_curve["psnr"] if x is not None]
    assert curve.mean[1] == pytest.approx(np.mean(by_frame[4:8]))
    assert curve.standard_error is not None
    assert curve.standard_error[1] > 0
    assert load(tmp_path / "evaluation/prediction.json").rollout == record.rollout
    shown = dataclasses.replace(
        protocol, score_given=True, paired_frames=9
    )  # given frames are no step
    both = score(Altered(slice(0, 5)), shown, tmp_path / "given").rollout["psnr"]
    assert both.mean == (100,)
    assert score(Altered(slice(1)), GENERATION, tmp_path / "generation").rollout == {}


def test_frames_that_fill_no_whole_steps_are_refused_at_once(tmp_path: Path) -> None:
    protocol = dataclasses.replace(PREDICTION, frames_per_step=5)
    with pytest.raises(UserError, match="12 predicted frames do not fill steps of 5"):
        score(Altered(slice(0)), protocol, tmp_path)
    clip = ClipSpec(num_frames=17, size=32)
    with pytest.raises(UserError, match="12 predicted frames do not fill steps of 5"):
        dataclasses.replace(protocol, clip=clip)
    with pytest.raises(UserError, match="only predictions are made in steps"):
        dataclasses.replace(GENERATION, frames_per_step=4)


def test_the_reference_lines_of_a_rollout(tmp_path: Path) -> None:
    """The tokenizer's ceiling lies above the last given frame repeated, which falls from step to step."""
    protocol = dataclasses.replace(PREDICTION, frames_per_step=4, num_clips=8)
    rows = {"ceiling": ReconstructionRow(load_tokenizer("sprites-vae3d")), "still": FirstFrameRow()}
    lines = {
        name: score(row, protocol, tmp_path / name).rollout["psnr"] for name, row in rows.items()
    }
    clips = [DATA[i].video for i in protocol.choose(DATA)[0]]
    errors = np.stack([np.square((c[5:] / 255.0) - c[4] / 255.0).mean((1, 2, 3)) for c in clips])
    steps = (-10 * np.log10(errors)).clip(max=100).reshape(8, 3, 4).mean(2)
    assert lines["still"].mean == pytest.approx(steps.mean(0), rel=1e-4)
    error = steps.std(0, ddof=1) / 8**0.5
    assert lines["still"].standard_error == pytest.approx(error, rel=1e-4)
    assert all(a > b for a, b in zip(lines["ceiling"].mean, lines["still"].mean, strict=True))
    assert lines["still"].mean[0] > lines["still"].mean[-1]


def test_clips_and_first_frames_lie_beside_the_record(tmp_path: Path) -> None:
    score(Altered(slice(0)), PREDICTION, tmp_path)
    record = load(tmp_path / "evaluation/prediction.json")
    assert [(c.file, c.first_frame) for c in record.clips] == [
        (f"prediction/{i:03d}.mp4", f"prediction/{i:03d}.png") for i in range(3)
    ]
    assert read_video(record.path(record.clips[2].file)).frames.shape == (17, 32, 32, 3)
    assert record.path(record.clips[2].first_frame or "").stat().st_size > 0


def test_a_record_holds_everything_its_numbers_depend_on(trained_run: Path) -> None:
    protocol = get_protocol("sprites-generation", num_clips=4)
    record = evaluate_run(trained_run, protocol)
    model = load_generator(trained_run)
    assert record.row == "trained"
    assert record.factors == {"paradigm": "next_block", "token_type": "discrete", "size": "debug"}
    assert record.setting_hash == model.description["setting_hash"]
    assert record.setting == model.description["setting"]
    assert record.options["paradigm.block"] == "(1, 1, 8)"
    assert record.checkpoint_sha256 == sha256_file(trained_run / "checkpoints/last.ckpt")
    validation = validation_set(model)
    assert len(validation) == 16
    assert record.protocol == protocol.describe(validation)
    assert record.protocol["num_clips"] == 4
    sha256 = sha256_file(ASSET)
    assert {(m.feature_network, m.feature_sha256) for m in record.metrics} == {
        ("sprites-net", sha256)
    }
    assert record.budget.evaluations == {"transformer": 40}
    assert record.budget.training_steps == 3
    assert record.budget.frames_per_second is not None
    assert [p["step"] for p in record.curve if "train_loss" in p] == [0, 1, 2]
    assert (record.seed, bool(record.hardware), bool(record.code_version)) == (0, True, True)
    assert load(trained_run / "evaluation/sprites-generation-4.json") == record


def test_scores_repeat_themselves(trained_run: Path, tmp_path: Path) -> None:
    model = load_generator(trained_run)
    data, row = validation_set(model), ModelRow(model, "model", run=trained_run)
    first, second = (score(row, PREDICTION, tmp_path / n, data) for n in "ab")
    assert values(first) == values(second)
    assert first.protocol_hash == second.protocol_hash


def test_reference_rows_share_the_runs_setting(trained_run: Path, tmp_path: Path) -> None:
    protocol = get_protocol("sprites-prediction", num_clips=2)
    records = evaluate_references([trained_run], protocol, tmp_path)
    names = ["reconstruction (discrete)", "first frame repeated", "untrained (next_block)"]
    assert [record.name for record in records] == names  # a distance alone needs real against real
    setting_hash = load_generator(trained_run).description["setting_hash"]
    assert {(r.row, r.setting_hash) for r in records} == {("reference", setting_hash)}
    assert len({r.protocol_hash for r in records}) == 1
    untrained = records[-1]
    assert untrained.checkpoint_sha256 is None
    assert untrained.curve == ()
    assert untrained.budget.parameters is not None
    assert untrained.budget.training_steps is None
    assert records[0].budget.parameters is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "first-frame-repeated",
        "reconstruction-discrete",
        "untrained-next-block",
    ]
    assert load_run(tmp_path / "untrained-next-block")[0].name == names[2]


@pytest.mark.parametrize("name", OF_SETTINGS)
def test_a_protocols_hash_changes_with_every_parameter(name: str) -> None:
    protocol = get_protocol(name)
    others = [
        get_protocol(name, num_clips=7),
        get_protocol(name, metrics=["fd-pixels", "psnr"]),
    ]
    hashes = {p.describe(DATA)["hash"] for p in (protocol, *others)}
    assert len(hashes) == 3
    assert protocol.describe(Sprites(80, seed=2))["hash"] not in hashes
    assert protocol.available_clips(DATA) == 40  # half of the set


def test_unknown_metrics_are_suggested() -> None:
    with pytest.raises(UserError, match="Did you mean 'ssim'"):
        get_protocol("sprites-prediction", metrics=["sim"])


@pytest.mark.parametrize("num_clips", [0, 1, -2])
def test_protocols_of_too_few_clips_are_refused(num_clips: int) -> None:
    with pytest.raises(UserError, match="num_clips must be at least 2"):
        get_protocol("sprites-generation", num_clips=num_clips)


@pytest.mark.parametrize("size", [3, 1])
def test_too_few_clips_are_refused(size: int, tmp_path: Path) -> None:
    protocol = get_protocol("sprites-generation", num_clips=256)
    with pytest.raises(UserError, match=f"has {size} clips, but at least 4 are needed"):
        evaluate(FirstFrameRow(), protocol, Sprites(size), tmp_path, description=DESCRIPTION)


def test_two_clips_are_enough(tmp_path: Path) -> None:
    for name in OF_SETTINGS:
        record = score(FirstFrameRow(), get_protocol(name, num_clips=2), tmp_path)
        assert all(metric.count == 2 for metric in record.metrics)


def test_attributes_of_clips_that_have_none_are_refused(tmp_path: Path) -> None:
    class Plain(Sprites):
        def __getitem__(self, index: int) -> Clip:
            return dataclasses.replace(super().__getitem__(index), attributes={})

    with pytest.raises(UserError, match="Attribute accuracy is for sprites"):
        evaluate(FirstFrameRow(), GENERATION, Plain(8), tmp_path, description=DESCRIPTION)


def test_data_that_is_not_there_any_more_is_an_error_in_words(trained_run: Path) -> None:
    model = load_generator(trained_run)
    folder = {"class_path": "arvid.data.folder.VideoFolder", "init_args": {"root": "/nowhere"}}
    model.description = {**model.description, "validation": folder}
    with pytest.raises(
        UserError, match=r"validation set cannot be built: /nowhere is not a folder"
    ):
        validation_set(model)


def test_a_record_says_that_training_had_clips_of_another_kind(
    trained_run: Path, tmp_path: Path
) -> None:
    model = load_generator(trained_run)
    row = ModelRow(model, "model", run=trained_run)
    clip = {"num_frames": 17, "size": 32, "fps": 16, "resize": "crop"}
    protocol = dataclasses.replace(PREDICTION, clip=ClipSpec(num_frames=17, size=32, fps=25))
    model.description["training"] = {"class_path": "x.VideoFolder", "init_args": {"clip": clip}}
    assert row.notes(protocol) == (
        "trained on clips of 16 fps, crop, scored on clips of 25 fps, crop",
    )
    same = dataclasses.replace(protocol, clip=ClipSpec(num_frames=9, size=64, fps=16))
    assert row.notes(same) == row.notes(PREDICTION) == ()
    squashed = dataclasses.replace(same, clip=ClipSpec(fps=16, resize="squash"))
    assert "scored on clips of 16 fps, squash" in row.notes(squashed)[0]
    record = score(row, protocol, tmp_path, validation_set(model))
    assert record.notes == row.notes(protocol)
    page = Comparison.from_runs([tmp_path]).notes
    assert any("trained on clips of 16 fps" in note for note in page)
