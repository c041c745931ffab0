"""What sampling needs of a trained generator."""

from __future__ import annotations

from typing import Protocol

import torch

from arvid.contracts import Paradigm, SamplingOptions, VideoTokenizer
from arvid.nn.conditioner import Conditioner


class Generator(Protocol):
    """Tokenizer, conditioner and paradigm that belong together: `arvid.training.generator_module.GeneratorModule`."""

    tokenizer: VideoTokenizer
    conditioner: Conditioner
    paradigm: Paradigm
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the clips that it was trained on."""
    sampling: SamplingOptions
    """How it is sampled by default."""

    @property
    def device(self) -> torch.device: ...
