"""A row's VBench scores as a result record and as a text table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Column, Table

from arvid.evaluation.records import (
    EVALUATION_FOLDER,
    MetricValue,
    ResultRecord,
    code_version,
    standard_error,
)
from arvid.files import sha256_json
from arvid.suites.manifest import read_manifest
from arvid.suites.vbench.aggregate import VBENCH, Rules, Totals, aggregate
from arvid.suites.vbench.results import DimensionResult
from arvid.suites.vbench.suite import FLICKERING

PROTOCOL = "vbench"
PERCENT = 100.0


@dataclass(frozen=True)
class Layout:
    """Paths of a row's files of VBench or one of its relatives, below the row's folder."""

    folder: Path
    name: str = PROTOCOL
    """Name of the benchmark, and so of its folder, record and protocol."""

    @property
    def benchmark(self) -> Path:
        """Folder of the manifest. It is not in the folder of videos because VBench allows only videos there."""
        return self.folder / self.name

    @property
    def videos(self) -> Path:
        """Folder of the generated videos."""
        return self.benchmark / "videos"

    @property
    def scores(self) -> Path:
        """Folder of the scores."""
        return self.benchmark / "scores"

    @property
    def record(self) -> Path:
        """Path of the record."""
        return self.folder / EVALUATION_FOLDER / f"{self.name}.json"


def make_record(
    results: Mapping[str, DimensionResult], layout: Layout, rules: Rules = VBENCH
) -> ResultRecord:
    """The record of a row: each measured dimension and the totals, in percent.

    The protocol lists the measured dimensions with networks and options, so its hash differs for other dimensions.
    Incomplete totals are marked in their headings.
    """
    from arvid.hardware import hardware  # imports torch

    model = read_manifest(layout.benchmark) or {}
    totals = aggregate({name: result.score for name, result in results.items()}, rules)
    metrics = [_metric(result, layout.name, rules) for result in results.values()]
    return ResultRecord(
        name=model.get("name", layout.folder.resolve().name),
        row="trained" if model else "reference",
        setting=model.get("setting", {}),
        setting_hash=model.get("setting_hash", ""),
        factors=model.get("factors", {}),
        options=model.get("options", {}),
        protocol=_protocol(results, model, layout.name),
        metrics=(*metrics, *_totals(totals, layout.name, rules)),
        checkpoint_sha256=model.get("checkpoint_sha256"),
        seed=model.get("seed", 0),
        code_version=code_version(),
        hardware=hardware(),
    )


def format_table(results: Mapping[str, DimensionResult], rules: Rules = VBENCH) -> Table:
    """Table of dimensions (raw and normalised) and totals, in percent. Lists missing dimensions."""
    numbers = (Column(name, justify="right") for name in ("videos", "raw %", "normalised %"))
    table = Table("dimension", *numbers, box=None, pad_edge=False)
    for name, scale in rules.dimensions.items():
        if name not in results:
            table.add_row(name, "", "", "missing: counts as raw 0")
            continue
        raw = results[name].score
        normal = scale.normalised(raw) / scale.weight
        table.add_row(
            name, str(len(results[name].videos)), f"{PERCENT * raw:.2f}", f"{PERCENT * normal:.2f}"
        )
    totals = aggregate({name: result.score for name, result in results.items()}, rules)
    for metric in _totals(totals, PROTOCOL, rules):
        table.add_row(metric.label, "", "", f"{metric.value:.2f}")
    return table


def _metric(result: DimensionResult, benchmark: str, rules: Rules) -> MetricValue:
    networks = result.made_with.get("networks", {})
    external = None if result.made_with.get("networks") is not None else "vbench package"
    return MetricValue(
        name=_metric_name(benchmark, result.dimension),
        label=f"{rules.title} {result.dimension.replace('_', ' ')}",
        value=PERCENT * result.score,
        spread=_standard_error(result),
        count=len(result.videos),
        unit="%",
        feature_network=external or " + ".join(networks) or None,
        feature_sha256=" + ".join(networks.values()) or None,
        protocol=benchmark,
    )


def _totals(totals: Totals, benchmark: str, rules: Rules) -> list[MetricValue]:
    groups = {**totals.groups, "total": totals.total}
    missing = {
        group: sum(group in ("total", rules.dimensions[name].group) for name in totals.missing)
        for group in groups
    }
    return [
        MetricValue(
            name=_metric_name(benchmark, group) + ("-incomplete" if missing[group] else ""),
            label=f"{rules.title} {group.replace('_', ' ')}"
            + (f" (incomplete: {n} missing)" if (n := missing[group]) else ""),
            value=PERCENT * value,
            unit="%",
            protocol=benchmark,
        )
        for group, value in groups.items()
    ]


def _metric_name(benchmark: str, name: str) -> str:
    return f"{benchmark}-{name.replace('_', '-').lower()}"


def _protocol(
    results: Mapping[str, DimensionResult], model: Mapping[str, Any], benchmark: str
) -> dict[str, Any]:
    """Everything that must be equal between rows."""
    values: dict[str, Any] = {
        "name": benchmark,
        "dimensions": {name: _conditions(result) for name, result in results.items()},
        "pooling": "as VBench in a single process",
        "prompts": model.get("prompts"),
        "fps": model.get("fps"),
    }
    return {**values, "hash": sha256_json(values)[:16]}


def _conditions(result: DimensionResult) -> dict[str, Any]:
    conditions = {key: result.made_with.get(key) for key in ("networks", "options")}
    if result.dimension == FLICKERING:
        return conditions  # the static filter keeps a different number of videos for each row
    return {**conditions, "videos": len(result.videos)}


def _standard_error(result: DimensionResult) -> float | None:
    """Standard error over prompts, since videos of one prompt are not independent. None without values of videos."""
    by_prompt: dict[str, list[float]] = {}
    for video in result.videos:
        value, path = video.get("video_results"), video["video_path"]
        if not isinstance(value, int | float) or not isinstance(path, str):
            return None
        # VBench-Long adds the index of a clip: "a dog-3_012"
        prompt = re.sub(r"-\d+(_(\d+|full))?$", "", Path(path).stem)
        by_prompt.setdefault(prompt, []).append(float(value))
    percent = PERCENT if result.dimension != "imaging_quality" else 1.0
    return standard_error([percent * fmean(values) for values in by_prompt.values()])
