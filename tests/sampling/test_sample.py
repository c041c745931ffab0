"""Sampling as a call: continuation of given frames, what is refused, contact sheets."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.collate import normalise, to_uint8
from arvid.data.sprites import Sprites
from arvid.evaluation.row_kinds import ReconstructionRow
from arvid.nn.finite import require_finite_weights
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling
from arvid.paradigms.nova.sampling import NovaSampling
from arvid.sampling.contact_sheet import contact_sheet, encode_png, side_by_side, write_sheet
from arvid.sampling.sample import Conditions, clip_grid, sample, stream
from arvid.training import generator_module
from arvid.training.generator_module import GeneratorModule, load_generator

CLIPS = list(Sprites(2))


@pytest.fixture(scope="module")
def model(trained_run: Path) -> GeneratorModule:
    return load_generator(trained_run)


def draw(model: GeneratorModule, **options: object) -> np.ndarray:
    return sample(model, Conditions.of_clips(CLIPS), progress=False, **options)


def first_frames(num: int) -> np.ndarray:
    return np.stack([clip.video[:num] for clip in CLIPS])


@pytest.mark.parametrize("num", [1, 5, 13])
def test_first_frames_come_back_as_the_tokenizer_has_them(model: GeneratorModule, num: int) -> None:
    videos = draw(model, first_frames=first_frames(num))
    assert videos.shape == (2, 17, 32, 32, 3)
    given = torch.stack([normalise(clip.video[:num]) for clip in CLIPS])
    known = to_uint8(model.tokenizer.decode(model.tokenizer.encode(given))).numpy()
    difference = np.abs(videos[:, :num].astype(int) - known)  # decoded alone or with what follows
    assert difference.max() <= 1


def test_pixels_are_rounded_unless_the_options_truncate_them() -> None:
    levels = torch.tensor([0.0, 99.4, 99.6, 254.9, 255.0])
    video = (levels / 127.5 - 1).expand(1, 3, 1, 1, 5)
    assert to_uint8(video)[0, 0, 0, :, 0].tolist() == [0, 99, 100, 255, 255]
    assert to_uint8(video, truncate=True)[0, 0, 0, :, 0].tolist() == [0, 99, 99, 254, 255]
    assert NovaSampling(as_published=True).truncates_pixels
    assert not NovaSampling().truncates_pixels


def test_a_continuation_is_reproducible_and_random(model: GeneratorModule) -> None:
    videos = [draw(model, first_frames=first_frames(5), seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(videos[0], videos[1])
    assert (videos[0] != videos[2]).any()


def test_a_clip_may_be_shorter_than_in_training(model: GeneratorModule) -> None:
    assert draw(model, num_frames=9).shape == (2, 9, 32, 32, 3)
    assert clip_grid(model, 9).t == 3


def test_too_many_first_frames_are_refused(model: GeneratorModule) -> None:
    with pytest.raises(UserError, match="17 first frames leave nothing to generate"):
        draw(model, first_frames=first_frames(17))
    with pytest.raises(UserError, match="5 first frames leave nothing to generate in a clip of 5"):
        draw(model, first_frames=first_frames(5), num_frames=5)


def test_first_frames_of_a_number_that_is_not_1_plus_4n_are_refused(model: GeneratorModule) -> None:
    with pytest.raises(UserError, match=r"2 frames do not fit this tokenizer"):
        draw(model, first_frames=first_frames(2))


def test_first_frames_of_another_size_are_refused(model: GeneratorModule) -> None:
    small = first_frames(1)[:, :, :16, :24]
    with pytest.raises(UserError, match="24x16 pixels; this model makes 32x32"):
        draw(model, first_frames=small)


def test_more_frames_than_the_model_can_do_are_refused(model: GeneratorModule) -> None:
    with pytest.raises(UserError, match="cannot exceed its training length"):
        draw(model, num_frames=21)


def test_options_of_the_call_win_over_the_models_own(model: GeneratorModule) -> None:
    greedy = CategoricalSampling(temperature=0.0)
    videos = [draw(model, options=greedy, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(videos[0], videos[1])


def test_a_generator_in_bf16_draws_and_its_rows_say_so(trained_run: Path) -> None:
    model = load_generator(trained_run, dtype="bfloat16")
    assert model.description["options"]["dtype"] == "bfloat16"
    assert next(model.tokenizer.parameters()).dtype == torch.float32
    conditions = Conditions(num_clips=2, captions=["a red square", "a blue circle"])
    videos = sample(model, conditions, progress=False)
    assert (videos.shape[0], videos.dtype) == (2, np.uint8)
    pieces = list(stream(model, conditions, progress=False))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1).astype(int), videos, atol=1)


@pytest.fixture
def ruined(trained_run: Path) -> GeneratorModule:
    """The model with a weight that is NaN, as training leaves it when it fails."""
    model = load_generator(trained_run)
    next(model.paradigm.parameters()).data.view(-1)[:3] = torch.nan
    return model


def test_weights_that_are_not_finite_are_named_before_anything_is_drawn(
    ruined: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name, _ in ruined.paradigm.named_parameters())
    monkeypatch.setattr(ruined.paradigm, "stream", lambda *_, **__: pytest.fail("drawn"))
    for call in (draw, lambda model: list(stream(model, Conditions.of_clips(CLIPS)))):
        with pytest.raises(
            UserError, match=rf"finite: 1 of \d+ tensors \(3 of \d+ .* paradigm\.{name}\)"
        ):
            call(ruined)


def test_the_command_writes_no_clips_of_ruined_weights(
    ruined: GeneratorModule,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generator_module, "load_generator", lambda *_, **__: ruined)
    out = tmp_path / "out"
    assert main(["sample", f"--checkpoint={trained_run}", "--count=1", f"--out={out}"]) == 2
    assert "weights that are not finite" in capsys.readouterr().err
    assert not out.exists()


def test_tokens_that_are_not_finite_are_an_error_with_the_options(
    model: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.zeros(2, 5, 4, 4, 8)
    tokens[1, 0] = torch.inf
    monkeypatch.setattr(model.paradigm, "generate", lambda _: tokens)
    monkeypatch.setattr(model.paradigm, "stream", lambda _: iter([tokens]))
    options = CategoricalSampling(guidance=1e6, top_k=2)
    message = r"tokens .* not finite, .*\(float32, guidance 1000000.0, top_k 2\)"
    with pytest.raises(UserError, match=message):
        draw(model, options=options)
    with pytest.raises(UserError, match=message):
        list(stream(model, Conditions.of_clips(CLIPS), options=options))


def test_logits_that_are_not_finite_are_an_error_where_drawing_does_not_wait(
    model: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing stops the drawing itself."""
    product = CategoricalHead._product
    monkeypatch.setattr(CategoricalHead, "_product", lambda *args: product(*args) * torch.inf)
    with pytest.raises(UserError, match="logits are not finite"):
        draw(model)
    monkeypatch.setattr(CategoricalHead, "_sound", CategoricalHead._note_faults)
    with pytest.raises(UserError, match=r"tokens .* not finite, .*\(float32, temperature 0.0\)"):
        draw(model, options=CategoricalSampling(temperature=0.0))
    monkeypatch.setattr(CategoricalHead, "_product", product)
    draw(model)


def test_pixels_that_are_not_finite_are_an_error(
    model: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = torch.zeros(2, 3, 17, 32, 32)
    video[0, 0, 3] = torch.nan
    monkeypatch.setattr(model.tokenizer, "decode", lambda _: video)
    with pytest.raises(UserError, match="pixels that a tokenizer decoded are not finite"):
        draw(model)


def test_a_tokenizer_that_is_ruined_reconstructs_nothing(model: GeneratorModule) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)
    next(tokenizer.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="tokenizer of mine has weights that are not finite"):
        ReconstructionRow(tokenizer, "mine")


def test_a_mask_in_a_buffer_may_hold_infinities() -> None:
    network = torch.nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0, -torch.inf]))
    require_finite_weights(network, "It")
    network.register_buffer("statistics", torch.tensor([torch.nan]))
    with pytest.raises(UserError, match="1 of 1 numbers of statistics"):
        require_finite_weights(network, "It")


def test_contact_sheet_shows_first_to_last_frame_of_each_clip() -> None:
    videos = (
        np.zeros((2, 17, 4, 6, 3), np.uint8) + np.arange(17, dtype=np.uint8)[:, None, None, None]
    )
    sheet = contact_sheet(videos, num_frames=9, gap=2)
    assert sheet.shape == (2 * 4 + 2, 9 * 6 + 8 * 2, 3)
    assert sheet[0, ::8, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert (sheet[4:6] == 255).all()
    assert contact_sheet(videos, num_frames=40, gap=0).shape == (8, 17 * 6, 3)
    assert contact_sheet(videos, num_frames=9, gap=2, scale=3).shape == (2 * 12 + 2, 9 * 18 + 16, 3)


def test_a_sheet_names_rows_prompts_and_frames(tmp_path: Path) -> None:
    clips = np.zeros((2, 3, 17, 96, 96, 3), np.uint8)
    write_sheet(tmp_path / "bare.png", clips)
    names, prompts = ("a", "a long name", "c"), ("a red square", "é" * 500)
    for _ in range(2):
        write_sheet(tmp_path / "named.png", clips, rows=names, prompts=prompts)
    bare, named = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("bare", "named"))
    assert bare.shape == (20 + 2 * 3 * 96 + 4 * 4 + 20, 9 * 100, 3)  # 20 between the clips
    left = named.shape[1] - bare.shape[1]
    assert 60 < left < 110  # "a long name"
    assert named.shape[0] == bare.shape[0] - 20 + 4 + 2 * 24
    assert (named[:20, left:] < 255).any(), "numbers of frames"
    assert (named[20:44] < 255).any(), "the prompt"
    middle = 44 + 100 + 48
    assert (named[middle - 8 : middle + 8, : left - 4] < 255).any(), "the name of the second row"
    assert (named[44:, left : left + 96] == 0).mean() > 0.9


def test_clips_side_by_side_and_as_png() -> None:
    videos = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 6, 3), dtype=np.uint8)
    row = side_by_side(videos)
    assert row.shape == (5, 4, 3 * 6 + 2 * 2, 3)
    np.testing.assert_array_equal(row[:, :, 8:14], videos[1])
    picture = cv2.imdecode(np.frombuffer(encode_png(row[0]), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(picture[..., ::-1], row[0])


def test_first_frames_are_refused_by_a_paradigm_that_declares_so(
    model: GeneratorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.paradigm), "takes_prefix", False)
    first = np.stack([clip.video[:1] for clip in CLIPS])
    with pytest.raises(UserError, match="NextBlock cannot continue given frames"):
        draw(model, first_frames=first)
