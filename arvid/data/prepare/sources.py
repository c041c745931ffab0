"""Find a dataset's clips: in folders, or in archives, which are unpacked once.

OUT/videos is a link to the clips, so their names in manifests do not depend on their folder.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from arvid.data._walk import LeftOut, walk
from arvid.errors import UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar")
_RAR_TOOLS = (
    ("bsdtar", "-x", "-f", "{archive}", "-C", "{folder}"),
    ("unrar", "x", "-idq", "{archive}", "{folder}/"),
    ("7z", "x", "-y", "-o{folder}", "{archive}"),
)
# RuntimeError: an encrypted .zip. Its subclass NotImplementedError: an unknown compression.
_DAMAGED = (zlib.error, lzma.LZMAError, RuntimeError)


def is_archive(path: Path) -> bool:
    """Whether a path is a file with the ending of an archive."""
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def unpacked(source: Path, out: Path) -> Path:
    """The folder of a source: the source itself, or OUT/unpacked with the content of its archive or archives.

    A folder with subfolders counts as unpacked. Raises UserError if the source does not exist, an archive cannot be
    read, or a name in it leads out of the archive.
    """
    if not source.exists():
        raise UserError(f"There is no {source}. Give an existing folder or archive with --source.")
    if source.is_dir():
        content = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
        archives = [path for path in content if is_archive(path)]
        if not archives or any(path.is_dir() for path in content):
            return source
    elif is_archive(source):
        archives = [source]
    else:
        raise UserError(f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    stems = [archive.name.partition(".")[0] for archive in archives]
    for archive, stem in zip(
        tqdm(archives, "unpacking", unit="archive", delay=1, disable=None), stems, strict=True
    ):
        name = stem if stems.count(stem) == 1 else archive.name
        _unpack(archive, out / "unpacked" / name)
    return out / "unpacked"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into a temporary folder, then rename it. Nothing is done if the folder exists."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    try:
        if archive.suffix.lower() == ".rar":
            _unpack_rar(archive, temporary)
        elif archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(
                archive
            ) as file:  # zipfile removes ".." and leading "/" from names
                file.extractall(temporary)
        else:
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter="data")
        temporary.chmod(0o755)
        temporary.replace(folder)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, *_DAMAGED) as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_rar(archive: Path, folder: Path) -> None:
    command = next((words for words in _RAR_TOOLS if shutil.which(words[0])), None)
    if command is None:
        names = ", ".join(words[0] for words in _RAR_TOOLS)
        raise UserError(
            f"{archive} needs a program that reads .rar, and none of {names} is installed. Install one, or unpack it "
            "elsewhere and give its folder with --source."
        )
    words = [word.format(archive=archive, folder=folder) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{archive} cannot be unpacked by {words[0]}: {done.stderr.strip()}.")


def videos_below(folder: Path) -> list[str]:
    """Relative paths of all videos below a folder (files and folders of frames), with forward slashes."""
    return [path.relative_to(folder).as_posix() for path in walk(folder, LeftOut())]


def folder_with(source: Path, *names: str) -> Path | None:
    """The first folder with subfolders of all these names, at most two levels below the source; None if none has."""
    level = [source]
    for _ in range(3):
        for folder in level:
            if all((folder / name).is_dir() for name in names):
                return folder
        inside = [path for folder in level for path in sorted(folder.iterdir())]
        # Hidden folders may be left by a killed process.
        level = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    return None


def link_videos(source: Path, out: Path) -> None:
    """Make OUT/videos a link to the folder of the clips.

    The link is relative if the clips are in OUT, so that OUT can be moved. Raises UserError if OUT/videos holds clips
    itself, or OUT is inside the folder of the clips, where the link would form a loop.
    """
    target, place = source.resolve(), out.resolve()
    if place.is_relative_to(target):
        raise UserError(f"{out} is inside the folder of the clips, {source}. Use another folder.")
    link = out / "videos"
    if link.is_dir() and not link.is_symlink():
        raise UserError(f"{link} holds clips of an earlier run. Use another folder.")
    out.mkdir(parents=True, exist_ok=True)
    inside = target.is_relative_to(place)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, place) if inside else target)


def own_videos(out: Path) -> Path:
    """OUT/videos as a folder for new clips. Raises UserError if it is a link to clips elsewhere."""
    videos = out / "videos"
    if videos.is_symlink():
        raise UserError(f"{videos} is a link to other clips. Use another folder.")
    return videos


def require_videos(names: Sequence[str], source: Path, expected: str) -> None:
    """Raise UserError if a source has no video."""
    if not names:
        raise UserError(f"{source} holds no videos. Expected: {expected}.")
