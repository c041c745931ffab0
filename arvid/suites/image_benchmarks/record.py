"""The result record of an image benchmark: a row that `arvid compare` reads like any other."""

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
    """Write ROW/evaluation/<benchmark>.json and return what it holds.

    The row is called `name`, or as the model whose images they are, or as the row's folder. Images from elsewhere
    have no setting.
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
    """What the images were drawn from, for all scored folders or for none."""
    folders = benchmark.scored_folders()
    found = [m for m in map(read_manifest, folders) if m is not None]
    alike = all((m["model"], m["seed"]) == (found[0]["model"], found[0]["seed"]) for m in found)
    if len(found) not in (0, len(folders)) or not alike:
        raise UserError(f"{benchmark.folder}: its categories are of unlike models or seeds.")
    return found


def _protocol(benchmark: ImageBenchmark, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What must be equal between rows: the prompts as the models were given them, and the images for each."""
    protocol = {
        "images_per_prompt": benchmark.images_per_prompt,
        "num_images": sum(m["num_images"] for m in manifests) or None,
        "prompts_sha256": [m["prompts_sha256"] for m in manifests],
    }
    return {"name": benchmark.name, "hash": sha256_json(protocol), **protocol}
