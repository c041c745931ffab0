"""BAIR robot pushing (arXiv:1710.05268): clips of 30 frames of 64x64, in TensorFlow record files of 256 clips each.

Published scores are of the camera "aux1", the default. Frames are stored without loss, under the names
train/traj_0_to_255/000.mp4 and so on. The dataset states no rate, so the files get arvid's default of 25 frames per
second. Actions and arm positions are not read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from tqdm import tqdm

from arvid.data.pictures import DEFAULT_FPS
from arvid.data.prepare.lossless import write_lossless
from arvid.data.prepare.prepared import Item, Prepared
from arvid.data.prepare.sources import (
    folder_with,
    link_videos,
    own_videos,
    require_videos,
    videos_below,
)
from arvid.data.prepare.tfrecords import RecordError, bytes_features, read_records
from arvid.data.video import Frames
from arvid.errors import UserError

CAPTION = "a robot arm pushes objects"
SPLITS = ("train", "test")
SIZE = 64
NUM_FRAMES = 30
EXPECTED = "train/*.tfrecords and test/*.tfrecords, or folders of frames below train and test"


def prepare(source: Path, out: Path, *, camera: str) -> Prepared:
    """Prepare the dataset from the archive, its record files, or frames that were extracted from them.

    Args:
        source: see `facts.BAIR`; a folder may hold the archive.
        out: the folder OUT.
        camera: "aux1" or "main". Extracted frames are of one camera already.

    Raises UserError if there are no clips, or a record file is damaged.
    """
    if not source.exists():
        raise UserError(f"There is no {source}. Name the archive or its folder with --source.")
    archive = source if source.is_file() else next(source.glob("*.tar"), None)
    if archive is not None:
        with _opened(archive) as tar:
            return _unpack(_members(tar), out, camera, archive)
    root = folder_with(source, *SPLITS)
    if root is not None and any(root.glob("train/*.tfrecords")):
        return _unpack(_files(root), out, camera, source)
    names = [] if root is None else [n for n in videos_below(root) if n.split("/")[0] in SPLITS]
    require_videos(names, source, EXPECTED)
    assert root is not None
    link_videos(root, out)
    return _prepared(names)


def _prepared(names: list[str]) -> Prepared:
    splits = {split: [name for name in names if name.startswith(f"{split}/")] for split in SPLITS}
    return Prepared(items=[Item(name, CAPTION) for name in names], splits=splits)


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read: {error}. Download it again.") from error


Opened = tuple[str, IO[bytes]]
"""Name of a record file without ending (train/traj_0_to_255), and its content."""


def _members(tar: tarfile.TarFile) -> Iterator[Opened]:
    for member in tar:
        path = PurePosixPath(member.name)
        file = tar.extractfile(member) if _is_records(path) else None
        if file is not None:
            yield f"{path.parent.name}/{path.stem}", file


def _files(root: Path) -> Iterator[Opened]:
    for path in sorted(root.glob("*/*.tfrecords")):
        if _is_records(PurePosixPath(path)):
            with path.open("rb") as file:
                yield f"{path.parent.name}/{path.stem}", file


def _is_records(path: PurePosixPath) -> bool:
    return path.suffix == ".tfrecords" and path.parent.name in SPLITS


def _unpack(opened: Iterator[Opened], out: Path, camera: str, source: Path) -> Prepared:
    """Write each record as a video. Raises UserError for a damaged file, and if OUT/videos is a link."""
    videos = own_videos(out)
    names = []
    for prefix, file in tqdm(opened, "unpacking clips", unit="file", delay=1, disable=None):
        try:
            for index, record in enumerate(read_records(file)):
                name = f"{prefix}/{index:03d}.mp4"
                write_lossless(videos / name, _frames(record, camera), DEFAULT_FPS)
                names.append(name)
        except RecordError as error:
            raise UserError(f"{source}, {prefix}.tfrecords: {error}.") from error
    require_videos(names, source, EXPECTED)
    return _prepared(sorted(names))


def _frames(record: memoryview, camera: str) -> Frames:
    """The frames (30, 64, 64, 3) of a camera. Raises RecordError for another number or size of frames."""
    features = bytes_features(record)
    keys = (f"{i}/image_{camera}/encoded" for i in count())
    found: list[Frames] = []
    for key in keys:
        pixels = features.get(key)
        if pixels is None:
            break
        if len(pixels) != SIZE * SIZE * 3:
            raise RecordError(f"{key} has {len(pixels)} bytes, not {SIZE}x{SIZE}x3")
        found.append(np.frombuffer(pixels, np.uint8).reshape(SIZE, SIZE, 3))
    if len(found) != NUM_FRAMES:
        raise RecordError(f"a clip has {len(found)} frames of camera {camera}, not {NUM_FRAMES}")
    return np.stack(found)
