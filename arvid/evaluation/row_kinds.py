"""Rows of a comparison. Each row makes clips for the conditions of real clips.

A row is a trained model or a reference. References: other real clips (lower bound of a distance), the tokenizer's
reconstruction (best possible frames of any model on its tokens), the first frame repeated, an untrained model. External
systems are in arvid/evaluation/external.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8

from arvid.contracts import Clip, UserError, VideoDataset, VideoTokenizer
from arvid.data.clips import ClipSpec
from arvid.data.collate import normalise, to_uint8
from arvid.evaluation.budget import count_budget
from arvid.evaluation.curves import read_curve
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import Budget
from arvid.nn.finite import require_finite_weights
from arvid.sampling.sample import Conditions, sample
from arvid.training.export import fingerprint
from arvid.training.generator_module import GeneratorModule

Videos = UInt8[np.ndarray, "b t h w 3"]


class Row(ABC):
    """One row of a comparison."""

    kind: Literal["trained", "reference"] = "reference"
    checkpoint_sha256: str | None = None

    def __init__(
        self, name: str, factors: dict[str, str], options: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.factors = factors
        self.options = options or {}

    @abstractmethod
    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        """Clips for the conditions (and first frames) of real `clips`, with their length and size.

        `batch` is the index of the batch over all folds. It selects the random seed.
        """

    def target_clips(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """The clips whose captions and attributes the last generated clips should show. Default: the real `clips`."""
        return clips

    def page_videos(self, clips: Sequence[Clip], videos: Videos) -> Videos:
        """The videos that the page shows for real `clips`. Default: the generated `videos`."""
        return videos

    def identity(self) -> dict[str, Any]:
        """Everything its clips depend on besides the protocol and the setting, as plain data."""
        return {
            "name": self.name,
            "factors": self.factors,
            "options": self.options,
            "checkpoint": self.checkpoint_sha256,
        }

    def classes(self) -> set[type]:
        """Classes whose code its clips depend on (see `arvid.evaluation.code_identity`)."""
        return {type(self)}

    def budget(self, clip: Clip, protocol: Protocol) -> Budget:
        """Costs of the row; empty by default."""
        return Budget()

    def curve(self) -> tuple[dict[str, float | None], ...]:
        """Training curve; none by default."""
        return ()

    def notes(self, protocol: Protocol) -> tuple[str, ...]:
        """Remarks that tables must show beside its values; none by default."""
        return ()


class ModelRow(Row):
    """A generator, trained or not.

    Args:
        model: the generator.
        name: of the row.
        run: folder of its training, with the training curve; None for an untrained model.
        checkpoint_sha256: hash of its checkpoint.
    """

    def __init__(
        self,
        model: GeneratorModule,
        name: str,
        *,
        run: Path | None = None,
        checkpoint_sha256: str | None = None,
    ) -> None:
        super().__init__(name, model.description["factors"], model.description["options"])
        self.model = model
        self.run = run
        self.kind = "reference" if run is None else "trained"
        self.checkpoint_sha256 = checkpoint_sha256

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        first = None
        if protocol.condition_frames:
            first = np.stack([clip.video[: protocol.condition_frames] for clip in clips])
        length = protocol.clip.num_frames if protocol.clip else None
        videos = sample(
            self.model,
            Conditions.of_clips(clips),
            num_frames=self._num_frames(protocol),
            first_frames=first,
            seed=protocol.seed + batch,
            progress=False,
        )
        return videos[:, :length]

    def _num_frames(self, protocol: Protocol) -> int | None:
        """Shortest length that the tokenizer supports (1 + n·F_T if causal, else n·F_T) and the protocol needs."""
        if protocol.clip is None:
            return None
        num_frames, spec = protocol.clip.num_frames, self.model.tokenizer.spec
        # a causal tokenizer encodes the first frame alone, then groups of `strides[0]` frames
        rest = (num_frames - 1) % spec.strides[0] if spec.causal else num_frames % spec.strides[0]
        return num_frames + (spec.strides[0] - rest if rest else 0)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "sampling": self.model.sampling.changed()}

    def classes(self) -> set[type]:
        return {*super().classes(), *map(type, self.model.modules())}

    def budget(self, clip: Clip, protocol: Protocol) -> Budget:
        spec, (_, height, width) = self.model.tokenizer.spec, self.model.clip_shape
        frames = protocol.condition_frames
        prefix = spec.grid(frames, height, width).t if frames else 0
        return count_budget(
            self.model,
            Conditions.of_clips([clip]),
            num_frames=self._num_frames(protocol),
            prefix_frames=prefix,
        )

    def curve(self) -> tuple[dict[str, float | None], ...]:
        return read_curve(self.run, by_frame=True) if self.run else ()

    def notes(self, protocol: Protocol) -> tuple[str, ...]:
        """A remark if its training had clips of another frame rate, or resized in another way, than the scored ones."""
        training = self.model.description.get("training") or {}
        trained = training.get("init_args", {}).get("clip")
        if self.kind != "trained" or protocol.clip is None or not trained:
            return ()
        ours, theirs = (
            _rate_and_resize(ClipSpec(**spec)) for spec in (trained, asdict(protocol.clip))
        )
        return (
            () if ours == theirs else (f"trained on clips of {ours}, scored on clips of {theirs}",)
        )


def _rate_and_resize(clip: ClipSpec) -> str:
    """`16 fps, crop`."""
    every = "all frames" if clip.stride == 1 else f"one frame of {clip.stride}"
    return f"{every if clip.fps is None else f'{clip.fps:g} fps'}, {clip.resize}"


class RealRow(Row):
    """Real clips other than those of the comparison: the lower bound of a distance between sets.

    Raises UserError if there are too few real clips.
    """

    def __init__(self, dataset: VideoDataset, protocol: Protocol) -> None:
        super().__init__("real", {})
        self.dataset = dataset
        others = [protocol.choose(dataset, fold)[1] for fold in range(protocol.folds)]
        if not all(others):
            raise UserError(
                f"Protocol {protocol.name} needs {2 * protocol.available_clips(dataset)} real clips to compare "
                f"real with real, but there are {len(dataset)}."
            )
        self.others = protocol.in_batches(
            [clips for clips in others for _ in range(protocol.trajectories)]
        )
        self.last: list[Clip] = []

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        self.last = [self.dataset[i] for i in self.others[batch][: len(clips)]]
        return np.stack([clip.video for clip in self.last])

    def target_clips(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        return self.last

    def page_videos(self, clips: Sequence[Clip], videos: Videos) -> Videos:
        """The real clips that gave the other rows their conditions: a column of the page then shows one scene."""
        return np.stack([clip.video for clip in clips])


class ReconstructionRow(Row):
    """Tokenizer reconstructions of the real clips: the best possible frames of any model on these tokens."""

    def __init__(self, tokenizer: VideoTokenizer, name: str | None = None) -> None:
        token_type = tokenizer.spec.type
        super().__init__(name or f"reconstruction ({token_type})", {"token_type": token_type})
        require_finite_weights(tokenizer, f"The tokenizer of {self.name}")
        self.tokenizer = tokenizer

    @torch.no_grad()
    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        device = next(self.tokenizer.parameters()).device
        video = torch.stack([normalise(clip.video) for clip in clips]).to(device)
        return to_uint8(self.tokenizer.decode(self.tokenizer.encode(video))).cpu().numpy()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "tokenizer": fingerprint(self.tokenizer)}

    def classes(self) -> set[type]:
        return {*super().classes(), *map(type, self.tokenizer.modules())}


class FirstFrameRow(Row):
    """The first frame repeated; in a prediction the last given frame."""

    def __init__(self) -> None:
        super().__init__("first frame repeated", {})

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        last = max(protocol.condition_frames - 1, 0)
        return np.stack([np.repeat(c.video[last : last + 1], len(c.video), 0) for c in clips])
