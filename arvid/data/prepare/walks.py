"""TECO's long videos with actions (arXiv:2210.02396): DMLab and Minecraft, 300 frames and an action at each.

wilson1yan/teco reads `<split>/<folder>/<name>.npz` with `video` and `actions` (DMLab), or `.mp4` with an .npz of
`actions` beside it (Minecraft), where split is train or test. Action i leads from frame i-1 to frame i. The repository
does not state what the ids mean, so their names are numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from arvid.data.frame_values import read_arrays, read_values, values_file
from arvid.data.pictures import DEFAULT_FPS
from arvid.data.prepare.lossless import write_lossless
from arvid.data.prepare.prepared import Item, Prepared
from arvid.data.prepare.sources import (
    folder_with,
    link_videos,
    own_videos,
    require_videos,
    unpacked,
)
from arvid.data.video import Frames
from arvid.errors import UserError
from arvid.files import atomic_write

SPLITS = ("train", "test")
ACTIONS = "actions"
_VIDEO = "video"


def prepare_arrays(source: Path, out: Path, caption: str) -> Prepared:
    """Write the videos of .npz files without loss, each with its actions beside it.

    Raises UserError if there are none, or one is damaged.
    """
    root, names = _found(source, out, ".npz")
    videos = own_videos(out)
    for name in tqdm(names, "unpacking clips", unit="clip", delay=1, disable=None):
        arrays = read_arrays(root / name, (_VIDEO, ACTIONS))
        video = _frames(root / name, arrays[_VIDEO])
        target = (videos / name).with_suffix(".mp4")
        write_lossless(target, video, DEFAULT_FPS)
        with atomic_write(values_file(target)) as temporary, temporary.open("wb") as file:
            np.savez(file, actions=arrays[ACTIONS])
    return _prepared(videos, [name.removesuffix(".npz") + ".mp4" for name in names], caption)


def prepare_files(source: Path, out: Path, caption: str) -> Prepared:
    """Link a folder of .mp4 files with .npz files beside them. Raises UserError as `prepare_arrays` does."""
    root, names = _found(source, out, ".mp4")
    link_videos(root, out)
    return _prepared(out / "videos", names, caption)


def _found(source: Path, out: Path, ending: str) -> tuple[Path, list[str]]:
    """The folder that holds the splits, and its files with this ending: <split>/<folder>/<name>, sorted."""
    root = folder_with(unpacked(source, out), *SPLITS)
    paths = [] if root is None else [p for s in SPLITS for p in root.glob(f"{s}/*/[!.]*{ending}")]
    require_videos([p.name for p in paths], source, f"train/*/*{ending} and test/*/*{ending}")
    assert root is not None
    return root, sorted(path.relative_to(root).as_posix() for path in paths)


def _frames(path: Path, video: np.ndarray) -> Frames:
    """Frames (T, H, W, 3). Raises UserError for another shape or type."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise UserError(
            f"{path}: video must be uint8 (frames, height, width, 3), got {video.dtype} {video.shape}."
        )
    return video


def _prepared(videos: Path, names: list[str], caption: str) -> Prepared:
    num_actions = _num_actions(videos / name for name in names)
    return Prepared(
        items=[Item(name, caption) for name in names],
        splits={split: [n for n in names if n.startswith(f"{split}/")] for split in SPLITS},
        conditions={ACTIONS: [str(i) for i in range(num_actions)]},
    )


def _num_actions(paths: Iterable[Path]) -> int:
    """One more than the largest action of all videos. Raises UserError for a negative one."""
    largest = 0
    for path in paths:
        actions = read_values(path, {ACTIONS: ()})[ACTIONS]
        if actions.min(initial=0) < 0:
            raise UserError(
                f"{values_file(path)}: actions must be one whole number per frame, 0 or more."
            )
        largest = max(largest, int(actions.max(initial=0)))
    return largest + 1
