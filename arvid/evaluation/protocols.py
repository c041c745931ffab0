"""Protocols: named, frozen ways of measuring. A number without its protocol says nothing.

Each is a YAML file of the folder configs/protocols, whose comments say where its values come from; docs/protocols.md
compares them. A protocol of one's own is such a file too, given by its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from arvid import registry
from arvid.contracts import UserError, VideoDataset
from arvid.data.clips import ClipSpec
from arvid.evaluation._parsing import parse
from arvid.files import sha256_json
from arvid.ranges import at_least, between
from arvid.yaml_files import load_yaml

MIN_CLIPS = 2
"""Fewest clips that a distance or a standard error can be computed from."""
SUFFIXES = (".yaml", ".yml")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How clips are made, which real clips they are compared with, and which metrics look at which frames.

    Raises UserError for values that contradict each other.
    """

    name: str
    summary: str
    task: Literal["generation", "prediction", "reconstruction"]
    """generation: from the condition of a real clip (caption, class) alone. prediction: its first frames are given
    besides. reconstruction: a tokenizer encodes and decodes it."""
    metrics: tuple[str, ...]
    """Short names of the registry."""

    num_clips: int | None = None
    """Clips made in each fold; by default as many as there are real ones."""
    folds: int = 1
    """Times that all is done, each with other seeds and other real clips as far as there are more. Numbers are the
    mean over the folds and their standard deviation."""
    num_real: int | None = None
    """Clips of a real set of its own, the same in all folds. By default each clip is compared with the very one
    whose condition it was made from."""
    real_split: str = "what --real names, or else the validation set of the run's setting"
    """Which real clips are meant: what `--real` has to hold."""
    too_few: Literal["refuse", "half", "repeat"] = "refuse"
    """Where there are fewer real clips than `num_clips`: an error; or take half of them at most, so that real can
    be compared with real; or go through them again."""
    order: Literal["shuffled", "listed"] = "shuffled"
    """Which of the real clips are taken: a permutation that the seed decides (many sets are ordered by class), or
    the first ones by name."""
    clip: ClipSpec | None = None
    """How real clips are cut and resized, and so the length and size of all clips. By default as the run's setting
    does it."""

    given_rate: Literal["cut", "keep"] = "cut"
    """What is done with given videos (`--videos`) that are faster than `clip.fps`. cut: frames are taken at that rate,
    as from real ones. keep: the first frames count, whatever rate the files state."""

    condition_frames: int = 0
    """Frames given in a prediction."""
    score_given: bool = False
    """Whether metrics also look at the frames that were given."""
    frames_per_step: int = 1
    """Frames of an autoregressive step, for the curves over steps of a prediction: its tokenizers' temporal stride.
    By default every frame is a step."""
    scored_frames: int | None = None
    """Frames that metrics look at, counted from the first one that they do; all by default."""
    paired_frames: int | None = None
    """The same for metrics that compare clip with clip, where they look at fewer."""
    paired_size: int | None = None
    """Height and width that metrics which compare clip with clip bring the frames to (bilinear)."""
    preprocessing: str | None = None
    """How clips become the input of FVD's network: a name of arvid.metrics.preprocessing."""
    ddof: int = 1
    """Taken from the clip count in covariances: 1 as TF-GAN and numpy.cov, 0 as StyleGAN-V."""

    batch_size: int = 32
    """Clips generated at once; batch i (counted over all folds) uses seed + i."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_ranges()
        for told, reason in self._contradictions():
            if told:
                raise UserError(f"Protocol {self.name}: {reason}.")
        if self.clip:
            self.require_whole_steps(self.clip.num_frames)

    def _check_ranges(self) -> None:
        where = f"Protocol {self.name}: "
        at_least(MIN_CLIPS).require(where, num_clips=self.num_clips, num_real=self.num_real)
        at_least(1).require(
            where,
            folds=self.folds,
            frames_per_step=self.frames_per_step,
            scored_frames=self.scored_frames,
            paired_frames=self.paired_frames,
            paired_size=self.paired_size,
            batch_size=self.batch_size,
        )
        at_least(0).require(where, condition_frames=self.condition_frames, seed=self.seed)
        between(0, 1).require(where, ddof=self.ddof)

    def _contradictions(self) -> list[tuple[bool, str]]:
        length = self.clip.num_frames if self.clip else None
        given = 0 if self.score_given else self.condition_frames
        predicts = self.task == "prediction"
        asked = given + (self.scored_frames or 1)
        return [
            (not self.metrics, "it names no metrics"),
            (
                predicts != (self.condition_frames > 0),
                "predictions and they alone have given frames",
            ),
            (self.frames_per_step > 1 and not predicts, "only predictions are made in steps"),
            (length is not None and asked > length, f"{asked} frames of {length} cannot be scored"),
            (self.num_real is not None and self.num_clips is None, "num_real needs num_clips"),
        ]

    def describe(self, dataset: VideoDataset) -> dict[str, Any]:
        """Every parameter, with the number of clips there are and the data's and the protocol's hashes."""
        values: dict[str, Any] = json.loads(
            json.dumps(dataclasses.asdict(self))
        )  # as a file has it
        if self.given_rate == "cut":  # older hashes know of no choice, and stay
            del values["given_rate"]
        values["num_clips"] = self.available_clips(dataset)
        values["data"] = dataset.fingerprint()[:16]
        return {**values, "hash": sha256_json(values)[:16]}

    def choose(self, dataset: VideoDataset, fold: int = 0) -> tuple[list[int], list[int]]:
        """Indices of the real clips whose conditions a fold uses, and of as many others for the row of real clips.

        There are no others where the set is too small for disjoint halves. Windows of one video may fall on both
        sides where a dataset cuts several.
        """
        num, order = self.available_clips(dataset), self._order(dataset)
        start = 0 if self.too_few == "half" else fold * num
        cycled = [order[i % len(order)] for i in range(start, start + 2 * num)]
        others = cycled[num:]
        taken = set(cycled[:num]) | set(self.real(dataset) or ())
        return cycled[:num], others if taken.isdisjoint(others) else []

    def real(self, dataset: VideoDataset) -> list[int] | None:
        """Indices of the real set of its own; None where each clip is compared with that of its condition.

        Raises UserError if there are fewer than `num_real`.
        """
        if self.num_real is None:
            return None
        if self.num_real > len(dataset):
            raise UserError(
                f"Protocol {self.name} compares with {self.num_real} real clips ({self.real_split}), "
                f"and there are {len(dataset)}."
            )
        return self._order(dataset)[: self.num_real]

    def available_clips(self, dataset: VideoDataset) -> int:
        """Clips made in each fold. Raises UserError if the real set is too small for the protocol."""
        size = len(dataset)
        asked = size if self.num_clips is None else self.num_clips
        if self.too_few == "half":
            return self._half(asked, size)
        if asked > size and self.too_few == "refuse":
            raise UserError(
                f"Protocol {self.name} asks for {asked} real clips ({self.real_split}), and there are {size}. "
                f"With --num-clips {size} it is another protocol, whose numbers stand in columns of their own."
            )
        if min(asked, size) < MIN_CLIPS:
            raise UserError(f"{min(asked, size)} clips: {MIN_CLIPS} are the fewest to compare.")
        return asked

    def _half(self, asked: int, size: int) -> int:
        available = min(asked, size // 2)
        if available < MIN_CLIPS:
            raise UserError(
                f"Protocol {self.name} would compare {available} clips, and {MIN_CLIPS} are the fewest that "
                f"statistics are made of: ask for more, and give a validation set of {2 * MIN_CLIPS} clips or "
                f"more (it has {size}; half of them are kept to compare real clips with real ones)."
            )
        return available

    def _order(self, dataset: VideoDataset) -> list[int]:
        if self.order == "listed":
            return list(range(len(dataset)))
        return np.random.default_rng(self.seed).permutation(len(dataset)).tolist()

    @property
    def scored(self) -> slice:
        """The frames of a clip that metrics look at."""
        start = 0 if self.score_given else self.condition_frames
        return slice(start, None if self.scored_frames is None else start + self.scored_frames)

    @property
    def predicted(self) -> slice:
        """Those of the frames that paired metrics look at which a prediction made."""
        return slice(self.condition_frames if self.score_given else 0, self.paired_frames)

    def require_whole_steps(self, num_frames: int) -> None:
        """Raise UserError where the predicted frames of clips of `num_frames` do not fill whole steps."""
        seen = range(num_frames)[self.scored][self.predicted]
        if len(seen) % self.frames_per_step:
            raise UserError(
                f"Protocol {self.name}: {len(seen)} predicted frames do not fill steps of "
                f"{self.frames_per_step} frames each (frames_per_step)."
            )

    def in_batches(self, folds: Sequence[Sequence[T]]) -> list[list[T]]:
        """What is given for the clips of each fold, as the batches that clips are generated in."""
        size = self.batch_size
        return [list(fold[i : i + size]) for fold in folds for i in range(0, len(fold), size)]


def get_protocol(
    name: str | Path, *, num_clips: int | None = None, metrics: Sequence[str] = ()
) -> Protocol:
    """A protocol by name or YAML file, on request with another number of clips or other metrics.

    Then it also has another name, so that its record lies beside that of the protocol itself and its numbers share
    no column with it. Raises UserError with a suggestion for an unknown name of a protocol or metric, and for a
    file that is none.
    """
    found = read_protocol(Path(name)) if str(name).endswith(SUFFIXES) else _named(str(name))
    if num_clips is not None and num_clips != found.num_clips:
        found = dataclasses.replace(found, name=f"{found.name}-{num_clips}", num_clips=num_clips)
    return _with_metrics(found, tuple(dict.fromkeys(metrics))) if metrics else found


def protocols() -> dict[str, Protocol]:
    """The protocols that come with arvid, by name."""
    return {name: read_protocol(path) for name, path in _included().items()}


@cache
def _included() -> dict[str, Path]:
    folder = Path(str(files("arvid"))) / "configs" / "protocols"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_protocol(path: Path) -> Protocol:
    """A protocol from a YAML file, whose name is its own.

    With the key `base`, the name of a protocol that comes with arvid, the file only holds what differs from it.
    Raises UserError naming the file and what is wrong with it.
    """
    try:
        given = load_yaml(path)
        if not isinstance(given, dict):
            raise UserError("it holds no keys")
        base = given.pop("base", None)
        values = {} if base is None else dataclasses.asdict(_named(base))
        if isinstance(given.get("clip"), dict):
            given["clip"] = {**(values.get("clip") or {}), **given["clip"]}
        plain = json.loads(json.dumps({**values, **given, "name": path.stem}))
        protocol: Protocol = parse(Protocol, plain, "")
    except ValueError as error:  # UserError is one
        raise UserError(f"{path} is not a protocol: {error}") from error
    return protocol


def _named(name: str) -> Protocol:
    known = _included()
    if name in known:
        return read_protocol(known[name])
    close = difflib.get_close_matches(name, known, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"There is no protocol {name!r}.{suggestion} Known: {', '.join(sorted(known))}; "
        "or give the path of a .yaml file."
    )


def _with_metrics(protocol: Protocol, metrics: tuple[str, ...]) -> Protocol:
    for metric in metrics:
        registry.get("metrics", metric)
    name = "-".join((protocol.name, *metrics))
    return dataclasses.replace(protocol, name=name, metrics=metrics)
