"""Publishes a run as a repository of the Hugging Face Hub: weights, records, clips and a model card."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from arvid.api.card import card
from arvid.api.model import Source, locate
from arvid.api.repository import FORMAT, MANIFEST, check_name, endpoint
from arvid.contracts import UserError
from arvid.evaluation.records import EVALUATION_FOLDER, ResultRecord, load_run
from arvid.evaluation.rows import records_folder
from arvid.files import atomic_write, sha256_file
from arvid.sealed import write_sealed_json
from arvid.training.checkpoint_io import read_checkpoint, verifying
from arvid.training.generator_module import read_description
from arvid.training.keys import PUBLISHED
from arvid.training.published import write_published

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Published:
    """A repository's files and where they are."""

    files: tuple[str, ...]
    place: str
    """Folder, or address of the commit."""


def write_repository(run: Source, name: str, folder: Path, *, licence: str | None) -> Published:
    """Write the repository `user/name` of a run into an empty or new folder.

    Raises UserError for a run without a generator's checkpoint, damaged files, and a folder with other files.
    """
    check_name(name)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder.")
    path = locate(run)
    with verifying(path):
        checkpoint = read_checkpoint(path)
        description = read_description(path, checkpoint)
        write_published(folder / PUBLISHED, checkpoint)
    source = records_folder(path)
    records = load_run(source) if (source / EVALUATION_FOLDER).is_dir() else []
    _copy_records(source, records, folder)
    command = _copy_training(source, folder)
    digests = {
        file.relative_to(folder).as_posix(): sha256_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    text = card(
        name, description, records, digests[str(PUBLISHED)], command=command, licence=licence
    )
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_sealed_json(folder / MANIFEST, {"format": FORMAT, "files": digests})
    return Published((*digests, "README.md", MANIFEST), str(folder))


def push(run: Source, name: str, *, licence: str | None = None, private: bool = False) -> Published:
    """Publish a run as `user/name` on the Hugging Face Hub, in one commit.

    Needs a token of the hub (`hf auth login`, or HF_TOKEN). `run` is a run folder, a checkpoint or a model. `licence`
    is the weights' licence as the hub names it, by default not stated.

    Raises UserError as `write_repository` does, and if the hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        written = write_repository(run, name, folder, licence=licence)
        api = HfApi(endpoint=endpoint(), library_name="arvid")
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message=f"arvid push {name}"
            )
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            raise UserError(
                f"{name} cannot be published at {endpoint()} ({str(error).strip().splitlines()[0]}). Log in with "
                "`hf auth login` or set HF_TOKEN, and give the same command again."
            ) from error
    return Published(written.files, commit.commit_url)


def _copy_records(source: Path, records: list[ResultRecord], folder: Path) -> None:
    """Copy the records, and the files that they name: clips, first frames and values per clip."""
    for record in records:
        named = [
            record.per_clip,
            *(f for clip in record.clips for f in (clip.file, clip.first_frame)),
        ]
        for file in (name for name in named if name is not None):
            if record.path(file).is_file():
                target = folder / EVALUATION_FOLDER / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(record.path(file), target)
    if records:
        (folder / EVALUATION_FOLDER).mkdir(exist_ok=True)
    for path in (source / EVALUATION_FOLDER).glob("[!.]*.json") if records else ():
        shutil.copyfile(path, folder / EVALUATION_FOLDER / path.name)


def _copy_training(source: Path, folder: Path) -> str | None:
    """Copy the configuration of the run's newest training; returns the command that repeats it."""
    configs = sorted(
        (source / "logs").glob("version_*/config.yaml"), key=lambda path: path.stat().st_mtime
    )
    if not configs:
        return None
    shutil.copyfile(configs[-1], folder / CONFIG)
    return f"arvid fit --config {CONFIG}"
