"""The result of a preparation, and the files written from it.

    OUT/videos          the clips, or a link to them
    OUT/manifest.csv    all readable clips: path, caption, label, num_frames, fps, height, width
    OUT/<split>.csv     the same for each split
    OUT/lists/*.txt     split lists, with paths relative to OUT/videos
    OUT/data.yaml       configuration to put after a setting: trains on the first training split
    OUT/dataset.json    source, classes, counts, and missing clips by reason

dataset.json is written last: if it exists, the other files are complete.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import arvid
from arvid.data._columns import split_fraction
from arvid.data._layout import Probe
from arvid.data._survey import probe_files
from arvid.data.prepare.facts import Facts
from arvid.errors import UserError
from arvid.files import atomic_write, sha256_file, write_json

ALL = "manifest"
"""File name (without ending) for all clips."""
COLUMNS = ("path", "caption", "label", "num_frames", "fps", "height", "width")


@dataclass(frozen=True)
class Item:
    """A clip before it is probed."""

    name: str
    """Its path relative to OUT/videos, with forward slashes."""
    caption: str = ""
    label: int | None = None
    """Number of its class."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset whose clips lie in OUT/videos."""

    items: Sequence[Item]
    splits: Mapping[str, Sequence[str]]
    """Names of the items of each split."""
    classes: Sequence[str] = ()
    """Names of the classes, by number."""
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Conditions per frame beside the clips, and the names of their values (see `arvid.data.frame_values`)."""
    missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split -> reason -> number of listed clips that are not among the items."""
    remarks: Sequence[str] = ()
    """Other differences from the published dataset."""


def hashed_splits(names: Sequence[str], val_fraction: float) -> dict[str, list[str]]:
    """Divide names into "train" and "val" by a hash of each, as `VideoFolder` does."""
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for name in names:
        splits["val" if split_fraction(name) < val_fraction else "train"].append(name)
    return splits


@dataclass(frozen=True)
class Summary:
    """Counts of the written dataset, stored in dataset.json."""

    splits: Mapping[str, Mapping[str, int]]
    """Split -> its numbers of clips and frames."""
    missing: Mapping[str, Mapping[str, int]]
    """Split -> reason -> number of missing clips."""
    remarks: Sequence[str]
    """Differences from the published dataset."""


@dataclass(frozen=True)
class _Placed:
    path: Path
    name: str


def write_prepared(
    prepared: Prepared, facts: Facts, out: Path, *, source: Path, strict: bool = False
) -> Summary:
    """Probe all clips, and write manifests, split lists and dataset.json.

    Args:
        prepared: the dataset.
        facts: published facts about it.
        out: the folder OUT.
        source: source of the clips, for dataset.json.
        strict: raise an error for missing or unreadable clips, and for counts that differ from the published ones.

    Raises UserError if no clip can be read, and as `strict` says. Nothing is written then.
    """
    probes, broken = _probe(prepared.items, out)
    rows = {
        item.name: _row(item, probes[item.name]) for item in prepared.items if item.name in probes
    }
    summary = _summarise(prepared, facts, probes, broken)
    if strict and (summary.remarks or summary.missing):
        differences = [*summary.remarks, *_reasons(summary.missing)]
        raise UserError(
            f"{facts.name} differs from the published dataset: {'; '.join(differences)}."
        )
    if not rows:
        reasons = "; ".join(_reasons({"all": Counter(broken.values())}))
        raise UserError(f"None of {len(prepared.items)} clips of {source} can be read: {reasons}.")
    # Unreadable clips have no row.
    tables = {ALL: list(rows)}
    tables |= {name: [n for n in names if n in rows] for name, names in prepared.splits.items()}
    files = {}
    for name, names in tables.items():
        path, listed = out / f"{name}.csv", out / "lists" / f"{name}.txt"
        if not names:  # an earlier run may have left files of this split
            path.unlink(missing_ok=True)
            listed.unlink(missing_ok=True)
            continue
        _write_manifest(path, [rows[n] for n in names])
        _write_list(listed, names)
        files[path.name] = sha256_file(path)
    _write_configuration(out, files, prepared.conditions)
    write_json(out / "dataset.json", _description(facts, source, prepared, summary, files))
    return summary


def _probe(items: Sequence[Item], out: Path) -> tuple[dict[str, Probe], dict[str, str]]:
    """Name -> probe of the readable clips, and name -> reason of the others."""
    placed = [_Placed(out.absolute() / "videos" / item.name, item.name) for item in items]
    probes, broken = probe_files(placed)
    return {one.name: probes[one.path] for one in placed if one.path in probes}, broken


def _row(item: Item, probe: Probe) -> tuple[Any, ...]:
    """A row of a manifest. A varying rate is left out, so that training probes the file and knows its times."""
    timing = ("", "") if probe.times is not None else (probe.num_frames, probe.fps)
    label = "" if item.label is None else item.label
    return (f"videos/{item.name}", item.caption, label, *timing, probe.height, probe.width)


def _summarise(
    prepared: Prepared, facts: Facts, probes: Mapping[str, Probe], broken: Mapping[str, str]
) -> Summary:
    splits, missing = {}, {}
    for split, names in prepared.splits.items():
        there = [probes[name] for name in names if name in probes]
        splits[split] = {"clips": len(there), "frames": sum(probe.num_frames for probe in there)}
        reasons = Counter(prepared.missing.get(split, {}))
        reasons.update(broken[name] for name in names if name in broken)
        if reasons:
            missing[split] = dict(reasons)
    in_splits = {name for names in prepared.splits.values() for name in names}
    others = Counter(reason for name, reason in broken.items() if name not in in_splits)
    if others:
        missing["in no split"] = dict(others)
    labels = {item.label for item in prepared.items if item.name in probes} - {None}
    found = {"clips": len(probes), "classes": len(labels)}
    found |= {split: counts["clips"] for split, counts in splits.items()}
    differing = [
        f"{what}: {found[what]:,} of {expected:,}"
        for what, expected in facts.counts.items()
        if what in found and found[what] != expected
    ]
    return Summary(splits, missing, [*prepared.remarks, *differing])


def _reasons(missing: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [f"{split}: {n:,} {why}" for split, whys in missing.items() for why, n in whys.items()]


def _write_manifest(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _write_list(path: Path, names: Sequence[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_configuration(
    out: Path, files: Mapping[str, str], conditions: Mapping[str, Sequence[str]]
) -> None:
    """Write data.yaml, which puts the manifests into a setting. It needs a training and a validation (or test) split.

    The setting still decides how clips are cut. Its own `split` is replaced by "all".
    """
    train = next((name for name in sorted(files) if name.startswith("train")), "")
    others = [train.replace("train", name, 1) for name in ("val", "test")]
    val = next((name for name in others if train and name in files), "")
    path = out / "data.yaml"
    if not val:
        path.unlink(missing_ok=True)
        return
    data = {
        part: {
            "class_path": "arvid.data.manifest.VideoManifest",
            "init_args": {
                "path": str(out.absolute() / name),
                "split": "all",
                # A new list for each part: the YAML writer would turn a shared one into a reference.
                **(
                    {"conditions": {c: list(n) for c, n in conditions.items()}}
                    if conditions
                    else {}
                ),
            },
        }
        for part, name in (("train", train), ("val", val))
    }
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump({"data": data}, sort_keys=False), encoding="utf-8")


def _description(
    facts: Facts, source: Path, prepared: Prepared, summary: Summary, files: Mapping[str, str]
) -> dict[str, Any]:
    published = {"title": facts.title, "page": facts.page, "licence": facts.licence}
    return {
        "dataset": facts.name,
        **published,
        "published_counts": dict(facts.counts),
        "source": str(source),
        "arvid": arvid.__version__,
        "classes": list(prepared.classes),
        **dataclasses.asdict(summary),
        "sha256": dict(files),
    }
