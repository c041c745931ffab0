"""Result records: one JSON file per row and protocol, with everything its values depend on.

A run stores them as RUN/evaluation/<protocol>.json. They are written atomically and never edited by hand. Tables and
pages are made only from records. A record contains a checksum of its content (see arvid/sealed.py): a damaged or edited
record is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import arvid
from arvid.errors import UserError
from arvid.evaluation._parsing import ParseError, parse
from arvid.metrics.rollout import StepCurve
from arvid.sealed import KEY, Damaged, verify, write_sealed_json

FORMAT = 5
"""Version of the file format; newer versions are refused. 2 added intervals, folds, identity and per_clip; 3 rollout
and the deviation of seeds; 4 the checksum; 5 notes and nearest training
clips."""
_SEALED_SINCE = 4

EVALUATION_FOLDER = "evaluation"
"""Subfolder of a run for its records and their clips."""

RowKind = Literal["trained", "reference"]
SpreadKind = Literal["", "standard error", "bootstrap", "deviation of folds", "deviation of seeds"]


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One measured value and how it was measured. Raises ValueError if it is not finite."""

    name: str
    """Short name, e.g. `fd-sprites`."""
    value: float
    protocol: str
    """Name of the record's protocol."""
    label: str = ""
    """Heading for readers, e.g. `FD (sprites)`; the name by default."""
    spread: float | None = None
    """Uncertainty of the value in its unit: a standard error or a standard deviation, as `spread_kind` says."""
    spread_kind: SpreadKind = ""
    """standard error: of a mean over clips. bootstrap: standard deviation over bootstrap resamples of the clips.
    deviation of folds, deviation of seeds: standard deviation over folds or training seeds. Empty: unknown (format 1).
    """
    interval: tuple[float, ...] | None = None
    """Low and high end of the 95 % bootstrap interval."""
    folds: tuple[float, ...] = ()
    """Values of the single folds or training seeds; `value` is their mean. Empty for one fold and one seed."""
    count: int | None = None
    """Number of samples in each fold."""
    higher_is_better: bool | None = True
    """None: neither."""
    unit: str = ""
    feature_network: str | None = None
    feature_sha256: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"metric {self.name} is {self.value}, which a record cannot hold")

    @property
    def heading(self) -> str:
        """Heading of the metric's column in tables."""
        return self.label or self.name

    @property
    def standard_error(self) -> float | None:
        """Standard error of `value`: `spread`, or over folds or seeds `spread` / sqrt(number of them)."""
        if self.spread is None or not self.folds:
            return self.spread
        return self.spread / math.sqrt(len(self.folds))


def over_repeats(
    repeats: Sequence[Sequence[MetricValue]], spread_kind: SpreadKind
) -> tuple[MetricValue, ...]:
    """Mean and standard deviation of each metric over folds or training seeds. A single one is returned unchanged."""
    if len(repeats) == 1:
        return tuple(repeats[0])
    merged = []
    for same in zip(*repeats, strict=True):
        values = tuple(metric.value for metric in same)
        merged.append(
            dataclasses.replace(
                same[0],
                value=statistics.fmean(values),
                spread=statistics.stdev(values),
                spread_kind=spread_kind,
                interval=None,
                folds=values,
            )
        )
    return tuple(merged)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Cost of a row. None (or empty) if it does not apply, as for most reference rows."""

    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    flops_per_training_clip: float | None = None
    flops_per_generated_clip: float | None = None
    evaluations: dict[str, int] = field(default_factory=dict)
    """Evaluations of each network for one generated clip, the main network first."""
    frames_per_second: float | None = None
    """Generated frames per second under the record's protocol, on the record's hardware."""
    training_seconds: float | None = None
    training_steps: int | None = None
    tokens_seen: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """A generated clip for the page; paths are relative to the record's folder, with forward slashes."""

    file: str
    prompt: str = ""
    first_frame: str | None = None
    nearest_training: str | None = None
    """The most similar training clip, if a metric looked for it."""

    def __post_init__(self) -> None:
        for path in (self.file, self.first_frame, self.nearest_training):
            if path is not None and not _stays_inside(path):
                raise ValueError(f"{path!r} leads out of the record's folder")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """Results of one row under one protocol (fields as in the file)."""

    name: str
    row: str
    """`trained` or `reference`."""
    setting_hash: str
    setting: dict[str, Any]
    """Everything that must be equal between rows: dotted key -> value."""
    protocol: dict[str, Any]
    """`name`, `hash` and every parameter of the protocol."""
    metrics: tuple[MetricValue, ...] = ()
    factors: dict[str, str] = field(default_factory=dict)
    """The compared factors, e.g. paradigm, token_type and size; empty for reference rows without factors."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the factors, dotted key -> value: an ablation varies one of them."""
    budget: Budget = Budget()
    curve: tuple[dict[str, float | None], ...] = ()
    """Training curve: points with `step`, `train_loss`, `val_loss` and, by latent frame, `val_frame_0`, `val_frame_1`,
    ... A loss not measured at a step is None or missing."""
    steps_curve: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Metric name -> value at each frame; None where it is not finite or not defined."""
    rollout: dict[str, StepCurve] = field(default_factory=dict)
    """Frame prediction: metric name -> curve over autoregressive steps."""
    clips: tuple[ClipEntry, ...] = ()
    per_clip: str | None = None
    """CSV file with values of each clip, relative to the record's folder; None if no metric has them."""
    notes: tuple[str, ...] = ()
    """Optional metrics of the protocol that were left out, with the reason, and how the clips of the row's training
    differ from the scored ones."""
    error: str | None = None
    """Why the row failed under this protocol. It then has no metrics, but tables still show it."""
    checkpoint_sha256: str | None = None
    seed: int = 0
    code_version: str = ""
    hardware: str = ""
    wall_seconds: float | None = None
    """Wall time of the process that finished the evaluation."""
    earlier: dict[str, str] = field(default_factory=dict)
    """Values in the form of an earlier version of arvid: keys of the setting, and `protocol.data`."""
    identity: str = ""
    """Hash of everything the values depend on: an evaluation with the same identity is not repeated."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folder: Path | None = field(default=None, compare=False, metadata={"stored": False})
    """Folder of the record and its clips; set by `load`, not stored in the file."""

    def __post_init__(self) -> None:
        if self.row not in ("trained", "reference"):
            raise ValueError(f"row is {self.row!r}: it must be 'trained' or 'reference'")
        if self.per_clip is not None and not _stays_inside(self.per_clip):
            raise ValueError(f"{self.per_clip!r} leads out of the record's folder")
        for key in ("name", "hash"):
            if not isinstance(self.protocol.get(key), str):
                raise ValueError(f"protocol.{key}: missing")
        for metric in self.metrics:
            if metric.protocol != self.protocol_name:
                raise ValueError(
                    f"metric {metric.name} is of protocol {metric.protocol}, "
                    f"but the record of {self.protocol_name}"
                )

    @property
    def protocol_name(self) -> str:
        """Name of the protocol by which the model was scored."""
        return str(self.protocol["name"])

    @property
    def protocol_hash(self) -> str:
        """Hash of the whole protocol. Records with the same hash can be compared."""
        return str(self.protocol["hash"])

    def path(self, relative: str) -> Path:
        """Path of a file that the record names."""
        return (self.folder or Path()) / relative


def save(record: ResultRecord, path: str | Path) -> None:
    """Write a record as JSON, atomically. Raises ValueError if a number in it is not finite."""
    value = dataclasses.asdict(record)
    value.pop("folder")
    try:
        write_sealed_json(path, {"format": FORMAT, **value})
    except ValueError as error:
        raise ValueError(f"{path}: the record holds a number that is not finite") from error


def load(path: str | Path) -> ResultRecord:
    """Read a record.

    Raises UserError with file and reason if it is missing, damaged, edited, of a newer format, or not a record.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such result record.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable result record, evaluate again ({error})."
        ) from error
    _require_format(path, value)
    if value.pop("format") >= _SEALED_SINCE:  # older records have no checksum
        _require_checksum(path, content)
        del value[KEY]
    try:
        record: ResultRecord = parse(ResultRecord, value, "")
    except ParseError as error:
        raise UserError(f"{path}: damaged result record, evaluate again ({error}).") from error
    return dataclasses.replace(record, folder=path.parent)


def load_run(run_dir: str | Path) -> list[ResultRecord]:
    """All records of a run, sorted by file name.

    Raises UserError if the run has no records or one of them cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: there is no such run folder.")
    folder = run_dir / EVALUATION_FOLDER
    # atomic_write's temporary files begin with a dot
    paths = sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))
    if not paths:
        raise UserError(
            f"{run_dir}: holds no result records ({EVALUATION_FOLDER}/*.json); "
            "make them with `arvid evaluate`."
        )
    return [load(path) for path in paths]


def code_version() -> str:
    """Version of the package; in a git checkout with the commit, and `-dirty` if files changed."""
    source = Path(arvid.__file__).resolve()
    # An installed copy may lie inside another project's repository: only a tracked file counts.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return arvid.__version__
    commit = _git(source.parent, "rev-parse", "--short=10", "HEAD")
    if not commit:
        return arvid.__version__
    changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{arvid.__version__}+g{commit}{'-dirty' if changed else ''}"


def _require_format(path: Path, value: Any) -> None:
    number = value.get("format") if isinstance(value, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{path}: not a result record of arvid (it states no format).")
    if number > FORMAT:
        raise UserError(
            f"{path}: written by a newer arvid (format {number}, this one reads up to {FORMAT}); "
            "update arvid or evaluate again."
        )
    if number < 1:
        raise UserError(f"{path}: damaged result record, evaluate again (format is {number}).")


def _require_checksum(path: Path, content: bytes) -> None:
    try:
        verify(content)
    except Damaged as error:
        raise UserError(
            f"{path}: damaged or edited result record, evaluate again ({error})."
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path


def _git(folder: Path, *args: str) -> str | None:
    """Output of a git command in `folder`, or None if it fails or git is absent."""
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
