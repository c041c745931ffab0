"""Scores and comparisons of trained models, as `arvid evaluate` and `arvid compare` make them."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from arvid.api.model import Model, Source, locate
from arvid.api.repository import is_hub_name
from arvid.api.results import Results
from arvid.contracts import UserError
from arvid.evaluation.protocols import get_protocol
from arvid.evaluation.real_clips import real_set
from arvid.evaluation.rows import evaluate_references, evaluate_run, records_folder
from arvid.report.comparison import Comparison
from arvid.report.page import write_report
from arvid.trust import trusting
from arvid.weights import downloading


def evaluate(
    models: Source | Sequence[Source],
    protocols: str | Path | Sequence[str | Path],
    *,
    real: str | Path | None = None,
    real_list: str | Path | None = None,
    num_clips: int | None = None,
    metrics: Sequence[str] = (),
    references: str | Path | None = None,
    dtype: str | None = None,
    trust: Iterable[str] = (),
    download: bool = False,
) -> Results:
    """Score models under protocols. The records are written into the run folders, where `compare` finds them.

    Args:
        models: a model, run folder or `hf://user/name`, or a list of them.
        protocols: name of a protocol or path of a YAML file, or a list of them (docs/protocols.md).
        real: real clips: folder, manifest or file of `arvid stats make`. Not needed if the protocol uses the validation
            set of the run's setting.
        real_list: file that lists the real videos to use.
        num_clips: another number of clips than the protocol's.
        metrics: names of metrics to use instead of the protocol's own.
        references: folder for reference rows (real clips, reconstructions and others); None: no such rows.
        dtype: type of the generators' weights; by default as loaded, and float32 for paths.
        trust: packages whose unregistered classes may be used.
        download: download missing published weights of metrics.

    Raises UserError for unknown protocols and for missing real clips or weights.
    """
    given = _sources(models)
    paths = [locate(model) for model in given]
    dtypes = [dtype or (m.dtype if isinstance(m, Model) else "float32") for m in given]
    records = []
    with trusting(trust), downloading(download):
        for name in _names(protocols):
            protocol = get_protocol(name, num_clips=num_clips, metrics=metrics)
            clips = None
            if real is not None:
                clips = real_set(protocol, Path(real), Path(real_list) if real_list else None)
            records += [
                evaluate_run(path, protocol, clips, dtype=kind)
                for path, kind in zip(paths, dtypes, strict=True)
            ]
            if references is not None:
                records += evaluate_references(paths, protocol, Path(references), clips)
    return Results.of_records(records)


def compare(
    runs: Source | Sequence[Source],
    *,
    out: str | Path | None = None,
    allow_different_settings: bool = False,
    title: str = "Comparison",
) -> Results:
    """The table of several scored runs.

    Args:
        runs: models or run folders; a path may have wildcards, as in "runs/*".
        out: folder for the page and the tables that `arvid compare` writes; None: nothing is written.
        allow_different_settings: compare rows with different settings; the notes then list the differences.
        title: heading of the page.

    Raises UserError if a run has no records, or if the settings differ.
    """
    if out is None:
        return Results.of_comparison(comparison(runs, allow_different_settings, title))
    written = write_report(
        run_folders(runs), out, allow_different_settings=allow_different_settings, title=title
    )
    return Results.of_comparison(written)


def comparison(
    runs: Source | Sequence[Source], allow_different_settings: bool, title: str = "Comparison"
) -> Comparison:
    """The records of several runs as a comparison. Raises UserError as `compare` does."""
    return Comparison.from_runs(
        run_folders(runs), allow_different_settings=allow_different_settings, title=title
    )


def run_folders(runs: Source | Sequence[Source]) -> list[Path]:
    """Folders of models and paths, with wildcards replaced. Raises UserError for a wildcard that fits no folder."""
    folders: list[Path] = []
    for run in _sources(runs):
        if isinstance(run, Model):
            folders.append(records_folder(run.path))
        elif is_hub_name(run):
            folders.append(records_folder(locate(run)))
        elif glob.has_magic(str(run)):
            found = sorted(path for path in map(Path, glob.glob(str(run))) if path.is_dir())
            if not found:
                raise UserError(f"{run}: there is no such folder.")
            folders += found
        else:
            folders.append(Path(run))
    return folders


def _sources(models: Source | Sequence[Source]) -> list[Source]:
    return [models] if isinstance(models, (Model, str, Path)) else list(models)


def _names(protocols: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [protocols] if isinstance(protocols, (str, Path)) else list(protocols)
