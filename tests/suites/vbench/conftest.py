"""A small suite of prompts, videos of it, and networks with seeded weights in the places of the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from arvid.data.video import write_video
from arvid.suites.vbench.suite import Prompt, Take, load_suite, takes

ENTRIES = [
    {"prompt_en": "a still cup", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "a red square",
        "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"],
    },
    {
        "prompt_en": "a blue circle, oil painting",
        "dimension": ["appearance_style"],
        "auxiliary_info": {"appearance_style": {"appearance_style": "oil painting"}},
    },
    {
        "prompt_en": "a blue circle, oil painting",
        "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"],
    },
    {"prompt_en": "alley", "dimension": ["scene", "background_consistency"]},
]
WIDTH = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(ENTRIES))
    return path


@pytest.fixture
def suite(suite_file: Path) -> tuple[Prompt, ...]:
    return load_suite(suite_file)


def noise(num_frames: int = 3, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


MakeVideos = Callable[..., list[Take]]


@pytest.fixture
def make_videos(suite: tuple[Prompt, ...], tmp_path: Path) -> MakeVideos:
    """Writes a video of noise for each take of a dimension into tmp_path/videos."""

    def make(dimension: str, flickering_samples: int = 7) -> list[Take]:
        wanted = takes(suite, [dimension], flickering_samples=flickering_samples)
        for seed, take in enumerate(wanted):
            write_video(tmp_path / "videos" / take.file, noise(seed=seed), 8)
        return wanted

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with seeded weights, as transformers stores it; its words are single letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    ends = dict(bos_token_id=52, eos_token_id=53, pad_token_id=53)
    config = CLIPConfig(
        text_config=dict(**WIDTH, vocab_size=len(words), **ends),
        vision_config=dict(**WIDTH, image_size=224, patch_size=32),
        projection_dim=768,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with seeded weights, as transformers stores it."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(**WIDTH, image_size=224, patch_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
