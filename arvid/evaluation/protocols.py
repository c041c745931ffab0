"""Protocols: named, frozen definitions of a measurement. A value has a meaning only together with its protocol.

Each is a YAML file in configs/protocols; comments there give the sources. docs/protocols.md compares them. Your own
protocol is also a YAML file, given by its path.
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
"""Smallest number of clips for a distance or a standard error."""
SUFFIXES = (".yaml", ".yml")

T = TypeVar("T")

_LATER_OPTIONS: dict[str, Any] = {
    "given_rate": "cut",
    "optional_metrics": [],
    "trajectories": 1,
    "conditions": [],
    "scored_every": 1,
}
"""Options added after the first hashes, and their defaults. A hash leaves them out at the default."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Defines how clips are made, the real clips they are compared with, and the frames that metrics use.

    Raises UserError for values that contradict each other.
    """

    name: str
    summary: str
    task: Literal["generation", "prediction", "reconstruction"]
    """generation: from the condition of a real clip (caption, class) only. prediction: also from its first frames.
    reconstruction: a tokenizer encodes and decodes the clip."""
    metrics: tuple[str, ...]
    """Short names in the registry."""
    optional_metrics: tuple[str, ...] = ()
    """Further metrics, used where their weights are present and the data have what they need. Records and tables say
    which ones are left out, and why."""

    num_clips: int | None = None
    """Number of generated clips in each fold. None: the number of real clips."""
    folds: int = 1
    """Number of repetitions, each with other seeds and, if there are enough, other real clips. Results are the mean
    and the standard deviation over folds."""
    trajectories: int = 1
    """Number of clips generated for each real clip, with other seeds. Paired metrics take the best one for each real
    clip; distances take all."""
    num_real: int | None = None
    """Size of a separate real set, the same in all folds. None: each clip is compared with the real clip that gave its
    condition."""
    real_split: str = "what --real names, or else the validation set of the run's setting"
    """Description of the real clips that `--real` must contain."""
    too_few: Literal["refuse", "half", "repeat"] = "refuse"
    """What to do with fewer real clips than `num_clips`. refuse: error. half: use at most half of them, so that real
    clips can be compared with other real clips. repeat: use them several times."""
    order: Literal["shuffled", "listed"] = "shuffled"
    """Order in which real clips are used. shuffled: a permutation by the seed (many sets are sorted by class). listed:
    the order of the dataset, by name."""
    clip: ClipSpec | None = None
    """How real clips are cut and resized; defines the length and size of all clips. None: as the run's setting does."""

    conditions: tuple[str, ...] = ()
    """Conditions per frame that a model gets besides caption and class, such as actions. They are read from .npz files
    beside the real videos (see `arvid.data.frame_values`)."""

    given_rate: Literal["cut", "keep"] = "cut"
    """Treatment of given videos (`--videos`) that are faster than `clip.fps`. cut: take frames at that rate, as from
    real clips. keep: take the first frames at any rate."""

    condition_frames: int = 0
    """Number of given frames in a prediction."""
    score_given: bool = False
    """Whether metrics include the given frames."""
    frames_per_step: int = 1
    """Frames per autoregressive step (the tokenizers' temporal stride), for curves over the steps of a prediction."""
    scored_frames: int | None = None
    """Number of frames that metrics use, from the first scored one; None: all."""
    scored_every: int = 1
    """n: metrics use every n-th frame, beginning with the first scored one."""
    paired_frames: int | None = None
    """Number of the scored frames that paired metrics use; None: all."""
    paired_size: int | None = None
    """Height and width to which paired metrics resize frames (bilinear); None: no resize."""
    preprocessing: str | None = None
    """Preprocessing for FVD's network: a key of arvid.metrics.preprocessing.PREPROCESSINGS."""
    ddof: int = 1
    """Subtracted from the clip count in covariances: 1 as TF-GAN and numpy.cov, 0 as StyleGAN-V."""

    batch_size: int = 32
    """Number of clips generated together. Batch i, counted over all folds, uses seed + i."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_ranges()
        for is_contradiction, reason in self._contradictions():
            if is_contradiction:
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
            scored_every=self.scored_every,
            paired_frames=self.paired_frames,
            paired_size=self.paired_size,
            batch_size=self.batch_size,
            trajectories=self.trajectories,
        )
        at_least(0).require(where, condition_frames=self.condition_frames, seed=self.seed)
        between(0, 1).require(where, ddof=self.ddof)

    def _contradictions(self) -> list[tuple[bool, str]]:
        length = self.clip.num_frames if self.clip else None
        given = 0 if self.score_given else self.condition_frames
        predicts = self.task == "prediction"
        needed = given + ((self.scored_frames or 1) - 1) * self.scored_every + 1
        return [
            (not self.metrics, "it names no metrics"),
            (
                predicts != (self.condition_frames > 0),
                "predictions need condition_frames, and other tasks have none",
            ),
            (self.frames_per_step > 1 and not predicts, "only predictions are made in steps"),
            (
                self.scored_every > 1 and predicts,
                "a prediction is scored at every frame (scored_every: 1)",
            ),
            (
                bool(self.conditions) and self.clip is None,
                "conditions are read from files beside the real videos, so it needs a `clip`",
            ),
            (
                length is not None and needed > length,
                f"it scores frame {needed} of clips with {length} frames",
            ),
            (self.num_real is not None and self.num_clips is None, "num_real needs num_clips"),
            (
                self.trajectories > 1 and self.task == "reconstruction",
                "several reconstructions of a clip are equal",
            ),
        ]

    def describe(self, dataset: VideoDataset) -> dict[str, Any]:
        """All parameters, the actual number of clips, and the hashes of the data and of the protocol."""
        # through JSON, so that tuples become lists as in a file
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for name, default in _LATER_OPTIONS.items():
            if values[name] == default:
                del values[name]
        values["num_clips"] = self.available_clips(dataset)
        values["data"] = dataset.fingerprint()[:16]
        return {**values, "hash": sha256_json(values)[:16]}

    def choose(self, dataset: VideoDataset, fold: int = 0) -> tuple[list[int], list[int]]:
        """Indices of the real clips that give a fold's conditions, and of as many other real clips.

        The others are for the row of real clips; empty if the set is too small for two disjoint halves. If a dataset
        cuts several windows from a video, the halves may share videos.
        """
        num, order = self.available_clips(dataset), self._order(dataset)
        # with "half", all folds use the same clips: the set is too small for others
        start = 0 if self.too_few == "half" else fold * num
        cycled = [order[i % len(order)] for i in range(start, start + 2 * num)]
        others = cycled[num:]
        taken = set(cycled[:num]) | set(self.real(dataset) or ())
        return cycled[:num], others if taken.isdisjoint(others) else []

    def real(self, dataset: VideoDataset) -> list[int] | None:
        """Indices of the separate real set; None if each clip is compared with the real clip of its condition.

        Raises UserError if there are fewer than `num_real`.
        """
        if self.num_real is None:
            return None
        if self.num_real > len(dataset):
            raise UserError(
                f"Protocol {self.name} compares with {self.num_real} real clips ({self.real_split}), "
                f"but there are {len(dataset)}."
            )
        return self._order(dataset)[: self.num_real]

    def available_clips(self, dataset: VideoDataset) -> int:
        """Number of generated clips in each fold. Raises UserError if the real set is too small for the protocol."""
        size = len(dataset)
        wanted = size if self.num_clips is None else self.num_clips
        if self.too_few == "half":
            return self._half(wanted, size)
        if wanted > size and self.too_few == "refuse":
            raise UserError(
                f"Protocol {self.name} asks for {wanted} real clips ({self.real_split}), but there are {size}. "
                f"Use --num-clips {size}: then it is another protocol, and its values get their own columns."
            )
        if min(wanted, size) < MIN_CLIPS:
            raise UserError(
                f"{min(wanted, size)} clips are too few: at least {MIN_CLIPS} are needed."
            )
        return wanted

    def _half(self, wanted: int, size: int) -> int:
        available = min(wanted, size // 2)
        if available < MIN_CLIPS:
            raise UserError(
                f"Protocol {self.name}: the validation set has {size} clips, but at least {2 * MIN_CLIPS} are needed: "
                f"{MIN_CLIPS} to score, and as many for the row of real clips. Add videos, or raise "
                "data.val.init_args.clips_per_video."
            )
        return available

    def _order(self, dataset: VideoDataset) -> list[int]:
        if self.order == "listed":
            return list(range(len(dataset)))
        return np.random.default_rng(self.seed).permutation(len(dataset)).tolist()

    @property
    def scored(self) -> slice:
        """The frames of a clip that metrics use."""
        start, every = 0 if self.score_given else self.condition_frames, self.scored_every
        num = self.scored_frames
        return slice(start, None if num is None else start + num * every, every)

    @property
    def predicted(self) -> slice:
        """The predicted frames that paired metrics use, within the scored frames."""
        return slice(self.condition_frames if self.score_given else 0, self.paired_frames)

    def require_whole_steps(self, num_frames: int) -> None:
        """Raise UserError if the predicted frames of clips of `num_frames` do not fill whole steps."""
        predicted = range(num_frames)[self.scored][self.predicted]
        if len(predicted) % self.frames_per_step:
            raise UserError(
                f"Protocol {self.name}: {len(predicted)} predicted frames do not fill steps of "
                f"{self.frames_per_step} frames each (frames_per_step)."
            )

    def in_batches(self, folds: Sequence[Sequence[T]]) -> list[list[T]]:
        """Split the items of each fold into the batches of the generation."""
        size = self.batch_size
        return [list(fold[i : i + size]) for fold in folds for i in range(0, len(fold), size)]


def get_protocol(
    name: str | Path, *, num_clips: int | None = None, metrics: Sequence[str] = ()
) -> Protocol:
    """A protocol by name or YAML file, optionally with another number of clips or other metrics.

    A changed protocol gets another name: its record does not replace the original's, and its values share no column.
    Raises UserError for an unknown name of a protocol or metric (with a suggestion), and for an invalid file.
    """
    found = read_protocol(Path(name)) if str(name).endswith(SUFFIXES) else _named(str(name))
    if num_clips is not None and num_clips != found.num_clips:
        found = dataclasses.replace(found, name=f"{found.name}-{num_clips}", num_clips=num_clips)
    return _with_metrics(found, tuple(dict.fromkeys(metrics))) if metrics else found


def protocols() -> dict[str, Protocol]:
    """The protocols included in arvid, by name."""
    return {name: read_protocol(path) for name, path in _included().items()}


@cache
def _included() -> dict[str, Path]:
    folder = Path(str(files("arvid"))) / "configs" / "protocols"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_protocol(path: Path) -> Protocol:
    """A protocol from a YAML file. Its name is the file's.

    With the key `base`, the name of an included protocol, the file holds only the differences from it. Raises UserError
    with the file and the reason if it is invalid.
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
    return dataclasses.replace(protocol, name=name, metrics=metrics, optional_metrics=())
