"""Result records: one JSON file for one row under one protocol, with everything its numbers depend on.

A run keeps them as RUN/evaluation/<protocol>.json. They are written whole or not at all and never edited by
hand; tables and pages are made from them alone. A record holds the checksum of its content (see arvid/sealed.py), so
one that is damaged or edited is refused.
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

FORMAT = 4
"""Version of the file format; a reader refuses newer ones. 2 added intervals, folds, identity and per_clip, 3 rollout
and the deviation of seeds, 4 the checksum."""
_SEALED_SINCE = 4

EVALUATION_FOLDER = "evaluation"
"""Where a run keeps its records and the clips they name."""

RowKind = Literal["trained", "reference"]
SpreadKind = Literal["", "standard error", "bootstrap", "deviation of folds", "deviation of seeds"]


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number and what it was measured with. Raises ValueError if it is not finite."""

    name: str
    """Short name, e.g. `fd-sprites`."""
    value: float
    protocol: str
    """Name of the protocol it was measured under: that of the record."""
    label: str = ""
    """Heading for readers, e.g. `FD (sprites)`; the name by default."""
    spread: float | None = None
    """How uncertain it is, in the unit of the value."""
    spread_kind: SpreadKind = ""
    """What the spread is: the standard error of a mean over clips; the standard deviation over clips drawn anew
    (bootstrap); or that of the values of folds or of training seeds. Records of format 1 do not say."""
    interval: tuple[float, ...] | None = None
    """Low and high end of the 95 % bootstrap interval."""
    folds: tuple[float, ...] = ()
    """The values whose mean it is, where a protocol has several folds or a row several training seeds."""
    count: int | None = None
    """Samples it was computed from, in each fold."""
    higher_is_better: bool = True
    unit: str = ""
    feature_network: str | None = None
    feature_sha256: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"metric {self.name} is {self.value}, which a record cannot hold")

    @property
    def heading(self) -> str:
        return self.label or self.name

    @property
    def standard_error(self) -> float | None:
        """Of the value: the spread, or that of a mean over folds or seeds."""
        if self.spread is None or not self.folds:
            return self.spread
        return self.spread / math.sqrt(len(self.folds))


def over_repeats(
    repeats: Sequence[Sequence[MetricValue]], spread_kind: SpreadKind
) -> tuple[MetricValue, ...]:
    """The values of each fold (or training seed) as means with their standard deviation; those of one as they are."""
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
    """Of the mean of independent values; None for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a row cost. None (or empty) where it does not apply, as for most reference rows."""

    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    flops_per_training_clip: float | None = None
    flops_per_generated_clip: float | None = None
    evaluations: dict[str, int] = field(default_factory=dict)
    """Evaluations of each network for one generated clip, the main network first."""
    frames_per_second: float | None = None
    """Frames generated per second under the record's protocol, on the record's hardware."""
    training_seconds: float | None = None
    training_steps: int | None = None
    tokens_seen: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """A generated clip for the page; paths are relative to the record's folder, with forward slashes."""

    file: str
    prompt: str = ""
    first_frame: str | None = None

    def __post_init__(self) -> None:
        for path in (self.file, self.first_frame):
            if path is not None and not _stays_inside(path):
                raise ValueError(f"{path!r} leads out of the record's folder")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """What one row scored under one protocol (fields as in the file)."""

    name: str
    row: str
    """`trained` or `reference`."""
    setting_hash: str
    setting: dict[str, Any]
    """Everything that must be equal between rows: flat, dotted key to value."""
    protocol: dict[str, Any]
    """`name`, `hash` and every parameter of the protocol."""
    metrics: tuple[MetricValue, ...] = ()
    factors: dict[str, str] = field(default_factory=dict)
    """What is compared, e.g. paradigm, token_type and size; empty for reference rows that have none."""
    options: dict[str, str] = field(default_factory=dict)
    """The factors' own options, dotted key to value: an ablation varies one of them."""
    budget: Budget = Budget()
    curve: tuple[dict[str, float | None], ...] = ()
    """Training curve: dicts of `step` and losses; a value not measured at a step is None or absent."""
    steps_curve: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Metric name to its value at each frame; None where it is not finite or not defined."""
    rollout: dict[str, StepCurve] = field(default_factory=dict)
    """Frame prediction: metric name to its curve over autoregressive steps."""
    clips: tuple[ClipEntry, ...] = ()
    per_clip: str | None = None
    """CSV file with the numbers of each clip, relative to the record's folder; None where metrics have none."""
    error: str | None = None
    """Why the row failed under this protocol; it has no metrics then, and still stands in the tables."""
    checkpoint_sha256: str | None = None
    seed: int = 0
    code_version: str = ""
    hardware: str = ""
    wall_seconds: float | None = None
    """Of the process that finished the evaluation."""
    earlier: dict[str, str] = field(default_factory=dict)
    """Values as an earlier version of arvid wrote them: keys of the setting, and `protocol.data`."""
    identity: str = ""
    """Hash of all that the numbers depend on: an evaluation with the same one is not done again."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folder: Path | None = field(default=None, compare=False, metadata={"stored": False})
    """Where the record lies and its clips are looked for; set by `load`, not part of the file."""

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
        return str(self.protocol["name"])

    @property
    def protocol_hash(self) -> str:
        return str(self.protocol["hash"])

    def path(self, relative: str) -> Path:
        """Where a file named by a clip lies."""
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
    """Read a record. Raises UserError naming file and reason if it is missing, damaged, edited, foreign or newer."""
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
    if value.pop("format") >= _SEALED_SINCE:
        _require_checksum(path, content)
        del value[KEY]
    try:
        record: ResultRecord = parse(ResultRecord, value, "")
    except ParseError as error:
        raise UserError(f"{path}: damaged result record, evaluate again ({error}).") from error
    return dataclasses.replace(record, folder=path.parent)


def load_run(run_dir: str | Path) -> list[ResultRecord]:
    """All records of a run, ordered by file name.

    Raises UserError if the run or its records are missing or one of them cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: there is no such run folder.")
    folder = run_dir / EVALUATION_FOLDER
    # atomic_write's temporary neighbours begin with a dot
    paths = sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))
    if not paths:
        raise UserError(
            f"{run_dir}: holds no result records ({EVALUATION_FOLDER}/*.json); "
            "make them with `arvid evaluate`."
        )
    return [load(path) for path in paths]


def code_version() -> str:
    """Version of the package, with the commit and `-dirty` when it runs from a git checkout."""
    source = Path(arvid.__file__).resolve()
    # an installed copy may lie inside another project's repository: only a tracked file counts
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
