"""Diffusers pipelines: each kind is asked for what it can do, and gets a row; bad output is an error."""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arvid.cli import main
from arvid.contracts import Clip, UserError
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation import rows
from arvid.evaluation.pipelines import PipelineRow, load_pipeline
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import load_run

DATA = Sprites(4, num_frames=9, size=32)
GENERATION = Protocol(
    name="generation",
    summary="",
    task="generation",
    metrics=("fd-pixels",),
    num_clips=4,
    clip=ClipSpec(num_frames=9, size=32, window="start"),
    batch_size=3,
)
PREDICTION = dataclasses.replace(
    GENERATION, name="prediction", task="prediction", metrics=("psnr",), condition_frames=1
)
RECONSTRUCTION = dataclasses.replace(GENERATION, name="copies", task="reconstruction")


class Stub:
    """Called like a text-to-video pipeline; makes the same frames whatever is asked."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.asked: list[dict[str, Any]] = []

    def __call__(self, prompt: str, num_frames: int = 8, **options: Any) -> SimpleNamespace:
        return self.make(prompt=prompt, num_frames=num_frames, **options)

    def make(self, **asked: Any) -> SimpleNamespace:
        self.asked.append(asked)
        return SimpleNamespace(frames=self.frames)


class FromImage(Stub):
    """Called like an image-to-video pipeline without prompts."""

    def __call__(self, image: Any, video_length: int = 8, **options: Any) -> SimpleNamespace:
        return self.make(image=image, video_length=video_length, **options)


class Either(Stub):
    """Called with a prompt, and with an image if there is one."""

    def __call__(self, prompt: str, image: Any = None, **options: Any) -> SimpleNamespace:
        return self.make(prompt=prompt, image=image, **options)


def a_row(stub: Stub, protocol: Protocol = GENERATION, **arguments: Any) -> PipelineRow:
    return PipelineRow(
        stub, "stub", source="x", dtype="float32", arguments=arguments, protocol=protocol
    )


def made(frames: np.ndarray, clips: Sequence[Clip]) -> np.ndarray:
    return a_row(Stub(frames)).generate(clips, GENERATION, 0)


def test_bad_output_of_a_pipeline_is_refused() -> None:
    clips = [DATA[0]]
    with pytest.raises(UserError, match="not finite"):
        made(np.full((1, 9, 32, 32, 3), np.nan), clips)
    with pytest.raises(UserError, match="8 frames; the protocol looks at 9"):
        made(np.zeros((1, 8, 32, 32, 3)), clips)
    with pytest.raises(UserError, match="not a video"):
        made(np.zeros((1, 9, 32, 32, 4)), clips)
    with pytest.raises(UserError, match="no caption"):
        made(np.zeros((1, 9, 32, 32, 3)), [Clip(video=DATA[0].video)])
    video = made(np.full((1, 12, 64, 48, 3), 0.5), clips)
    np.testing.assert_array_equal(video, np.full((1, 9, 32, 32, 3), 128, np.uint8))


def test_each_clip_of_a_pipeline_has_its_own_seed() -> None:
    stub = Stub(np.zeros((1, 9, 32, 32, 3)))
    a_row(stub, guidance_scale=2).generate([DATA[0], DATA[1]], GENERATION, 1)
    assert [a["generator"].initial_seed() for a in stub.asked] == [3, 4]  # batches are of three
    assert [a["prompt"] for a in stub.asked] == [DATA[0].caption, DATA[1].caption]
    assert {(a["num_frames"], a["guidance_scale"]) for a in stub.asked} == {(9, 2)}


def test_predictions_go_on_from_the_frame_that_is_given() -> None:
    for stub in (FromImage(np.zeros((1, 9, 32, 32, 3))), Either(np.zeros((1, 9, 32, 32, 3)))):
        a_row(stub, PREDICTION).generate([DATA[0], DATA[1]], PREDICTION, 0)
        for i, asked in enumerate(stub.asked):
            np.testing.assert_array_equal(np.asarray(asked["image"]), DATA[i].video[0])
            assert asked.get("prompt", DATA[i].caption) == DATA[i].caption
            assert asked.get("video_length", 9) == 9
    plain = Either(np.zeros((1, 9, 32, 32, 3)))
    a_row(plain).generate([DATA[0]], GENERATION, 0)
    assert plain.asked[0]["image"] is None


def test_what_a_pipeline_cannot_do_is_said_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frames = np.zeros((1, 9, 32, 32, 3))
    with pytest.raises(UserError, match="name an image-to-video pipeline"):
        a_row(Stub(frames), PREDICTION)
    with pytest.raises(UserError, match="name a text-to-video pipeline"):
        a_row(FromImage(frames), GENERATION)
    monkeypatch.setattr(rows, "load_pipeline", lambda *_: pytest.fail("it was loaded"))
    more = dataclasses.replace(PREDICTION, name="five", condition_frames=5)
    for protocol, reason in ((more, "five gives 5 frames"), (RECONSTRUCTION, "a reconstruction")):
        with pytest.raises(UserError, match=rf"{reason}\. Score videos .* --videos"):
            rows.evaluate_pipeline("x", protocol, DATA, out=tmp_path, name="x")


def test_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a diffusers pipeline"):
        load_pipeline(str(tmp_path))


@pytest.fixture(scope="module")
def text_to_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AnimateDiff with random weights, as diffusers saves it."""
    from diffusers import (
        AnimateDiffPipeline,
        AutoencoderKL,
        DDIMScheduler,
        MotionAdapter,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    letters = string.ascii_lowercase
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    AnimateDiffPipeline(
        vae=AutoencoderKL(block_out_channels=[8], norm_num_groups=2),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
        ),
        unet=UNet2DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        motion_adapter=MotionAdapter(
            block_out_channels=(8, 8),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        ),
        scheduler=DDIMScheduler(),
    ).save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def image_to_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Video Diffusion with random weights, as diffusers saves it."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        intermediate_size=16,
        patch_size=56,
    )
    folder = tmp_path_factory.mktemp("pipeline") / "svd"
    StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",)
        ),
        image_encoder=CLIPVisionModelWithProjection(vision),
        unet=UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 32),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=24,
            addition_time_embed_dim=8,
        ),
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction"),
        feature_extractor=CLIPImageProcessor(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real videos in a class folder, whose name is their caption."""
    root = tmp_path_factory.mktemp("real")
    for i in range(4):
        write_video(root / f"MoveLeft/v_{i}.mp4", DATA[i].video, 8, crf=0)
    return root


def given(tmp_path: Path, real: Path, task: str) -> list[str]:
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        f"summary: mine\n{task}\nnum_clips: 3\nclip: {{num_frames: 9, size: 32, window: start}}\n"
    )
    return ["evaluate", f"--real={real}", f"--protocol={protocol}"]


OPTIONS = '--pipeline-options={"num_inference_steps": 1, "height": 16, "width": 16}'


def test_a_text_to_video_pipeline_gets_a_row(
    real: Path, text_to_video: Path, tmp_path: Path
) -> None:
    asked = given(tmp_path, real, "task: generation\nmetrics: [fd-pixels]")
    for out in ("a", "b"):
        arguments = [*asked, f"--pipeline={text_to_video}", OPTIONS, f"--out={tmp_path / out}"]
        assert main(arguments) == 0
    first, second = (load_run(tmp_path / out)[0] for out in ("a", "b"))
    assert first.metrics == second.metrics
    assert first.metrics[0].count == 3
    assert (first.name, first.options["num_inference_steps"]) == ("tiny", "1")
    assert main([*asked, f"--pipeline={tmp_path}", f"--out={tmp_path}"]) == 2


def test_an_image_to_video_pipeline_gets_a_row(
    real: Path, image_to_video: Path, tmp_path: Path
) -> None:
    asked = given(tmp_path, real, "task: prediction\nmetrics: [psnr]\ncondition_frames: 1")
    assert main([*asked, f"--pipeline={image_to_video}", OPTIONS, f"--out={tmp_path}"]) == 0
    (record,) = load_run(tmp_path)
    assert (record.name, record.row, record.metrics[0].count) == ("svd", "reference", 3)
    assert len(record.rollout["psnr"].mean) == 8
