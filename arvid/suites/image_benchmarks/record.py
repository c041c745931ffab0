"""The result record of an image benchmark: a row for `arvid compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arvid.errors import UserError
from arvid.evaluation.records import (
    EVALUATION_FOLDER,
    MetricValue,
    ResultRecord,
    code_version,
    save,
)
from arvid.files import sha256_json
from arvid.suites.image_benchmarks.benchmark import ImageBenchmark
from arvid.suites.manifest import read_manifest


def write_record(
    benchmark: ImageBenchmark, metrics: Sequence[MetricValue], name: str | None = None
) -> ResultRecord:
    """Write ROW/evaluation/<benchmark>.json and return the record.

    The row's name is `name`, by default that of the model, or else of the row's folder. Images of external systems have
    no setting.
    """
    manifests = _manifests(benchmark)
    model = manifests[0]["model"] if manifests else {}
    setting = model.get("setting", {})
    record = ResultRecord(
        name=name or model.get("name") or benchmark.row.name,
        row="trained" if model.get("kind") == "checkpoint" else "reference",
        setting=setting,
        setting_hash=model.get("setting_hash", sha256_json(setting)),
        protocol=_protocol(benchmark, manifests),
        metrics=tuple(metrics),
        factors=model.get("factors", {}),
        options=model.get("options", {}),
        checkpoint_sha256=model.get("checkpoint_sha256"),
        seed=manifests[0]["seed"] if manifests else 0,
        code_version=code_version(),
    )
    save(record, benchmark.row / EVALUATION_FOLDER / f"{benchmark.name}.json")
    return record


def _manifests(benchmark: ImageBenchmark) -> list[dict[str, Any]]:
    """Manifests of all scored folders; empty if no folder has one. Raises UserError if models or seeds differ."""
    folders = benchmark.scored_folders()
    found = [m for m in map(read_manifest, folders) if m is not None]
    equal = all((m["model"], m["seed"]) == (found[0]["model"], found[0]["seed"]) for m in found)
    if len(found) not in (0, len(folders)) or not equal:
        raise UserError(
            f"{benchmark.folder}: its categories come from different models or seeds. Sample them again."
        )
    return found


def _protocol(benchmark: ImageBenchmark, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that must be equal between rows: the prompts given to the models, and the number of images."""
    protocol = {
        "images_per_prompt": benchmark.images_per_prompt,
        "num_images": sum(m["num_images"] for m in manifests) or None,
        "prompts_sha256": [m["prompts_sha256"] for m in manifests],
    }
    return {"name": benchmark.name, "hash": sha256_json(protocol), **protocol}
