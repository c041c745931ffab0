"""The attributes of a trained generator that sampling uses."""

from __future__ import annotations

from typing import Protocol

import torch

from arvid.contracts import Paradigm, SamplingOptions, VideoTokenizer
from arvid.nn.conditioner import Conditioner


class Generator(Protocol):
    """A tokenizer with its conditioner and paradigm, such as `arvid.training.generator_module.GeneratorModule`."""

    tokenizer: VideoTokenizer
    conditioner: Conditioner
    paradigm: Paradigm
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the training clips."""
    sampling: SamplingOptions
    """Default sampling options."""

    @property
    def device(self) -> torch.device: ...
