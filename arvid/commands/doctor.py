"""Check this installation: versions, devices, codecs and weights, with advice on each fault.

The exit code is 1 if something that arvid needs is missing or broken.

example:
  arvid doctor
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = Path(__file__).parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LINKED = ("paradigms", "tokenizers", "configs", "benchmarks")
INSTALL = "Install it: pip install -c constraints.txt -e . (in a checkout, `make demo` does)."


@dataclass(frozen=True, kw_only=True)
class Row:
    """Outcome of one check. Checks import third-party packages themselves, so a broken package gives a row too."""

    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    advice: str = ""
    """What to do if the status is not ok."""
    needed: bool = False
    """Whether arvid cannot run without it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options."""


def run(options: argparse.Namespace) -> int:
    """Print the report; returns 1 if arvid cannot run here, else 0."""
    sections = examine()
    print(render(sections))
    return 1 if _faults(sections) else 0


def check_python() -> Iterator[Row]:
    """Interpreter and operating system."""
    old = sys.version_info < (3, 11)
    detail = f"{platform.python_version()} on {platform.platform()}"
    advice = "arvid needs Python 3.11 or later."
    yield Row(
        name="python", status="broken" if old else "ok", detail=detail, advice=advice, needed=True
    )


def check_packages() -> Iterator[Row]:
    """Installed version of each direct dependency against its lower bound and the tested version."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("arvid") or []]
    except metadata.PackageNotFoundError:
        yield Row(
            name="arvid", status="missing", detail="not installed", advice=INSTALL, needed=True
        )
        return
    yield Row(name="arvid", status="ok", detail=metadata.version("arvid"))
    tested = _tested_versions(PACKAGE.parent / "constraints.txt")
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement, tested)


def _package(requirement: Requirement, tested: dict[str, str]) -> Row:
    name = requirement.name
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Row(name=name, status="missing", detail="not installed", advice=INSTALL, needed=True)
    if not requirement.specifier.contains(version, prereleases=True):
        detail = f"{version}, but arvid needs {requirement.specifier}"
        return Row(name=name, status="broken", detail=detail, advice=INSTALL, needed=True)
    expected = tested.get(_canonical(name), version)
    note = "" if version.partition("+")[0] == expected else f" (tested with {expected})"
    return Row(name=name, status="ok", detail=version + note)


def _tested_versions(constraints: Path) -> dict[str, str]:
    """Tested versions by canonical package name; empty in a wheel, which has no constraints file."""
    if not constraints.is_file():
        return {}
    lines = constraints.read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version.strip() for name, version in pairs}


def check_imports() -> Iterator[Row]:
    """Whether the large packages can be imported together; installed ones may conflict."""
    for name in ("cv2", "torchvision", "lightning.pytorch", "transformers"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            yield _unusable(f"import {name}", error)
        else:
            yield Row(name=f"import {name}", status="ok", detail="works")


def _unusable(name: str, error: Exception) -> Row:
    detail = f"{type(error).__name__}: {error}"
    return Row(name=name, status="broken", detail=detail, advice=INSTALL, needed=True)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_devices() -> Iterator[Row]:
    """Processor, memory and accelerators. A missing accelerator is not a fault: the CPU is the default."""
    import torch

    from arvid.hardware import RATE_DIM, instruction_set, product_rate

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row(name="cpu", status="ok", detail=f"{cores} cores, {_memory()}")
    yield Row(name="instructions", status="ok", detail=instruction_set())
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        detail = f"{product_rate(dtype) / 1e9:.1f} GFLOP/s ({RATE_DIM} x {RATE_DIM} product)"
        yield Row(name=name, status="ok", detail=detail)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Row(name=f"cuda:{index}", status="ok", detail=detail)
    if torch.backends.mps.is_available():
        yield Row(name="mps", status="ok", detail="Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        detail = "none that this build of torch can use; arvid runs on the CPU"
        yield Row(name="accelerator", status="ok", detail=detail)


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "memory unknown"
    return f"{size / 2**30:.0f} GiB of memory"


def check_codecs() -> Iterator[Row]:
    """Whether PyAV writes and reads back the two codecs that browsers play."""
    import av

    for name, encoder, container, needed in (
        ("H.264", "libx264", "mp4", True),
        ("VP9", "libvpx-vp9", "webm", False),
    ):
        advice = "Reinstall av from a wheel: pip install --force-reinstall --only-binary av av"
        try:
            frames = _round_trip(encoder, container)
        except (av.FFmpegError, ValueError) as error:
            yield Row(name=name, status="broken", detail=str(error), advice=advice, needed=needed)
        else:
            status: Literal["ok", "broken"] = "ok" if frames == 4 else "broken"
            detail = f"wrote 4 frames with {encoder}, read {frames}"
            yield Row(name=name, status=status, detail=detail, advice=advice, needed=needed)


def _round_trip(encoder: str, container: str, num_frames: int = 4) -> int:
    """Encode grey frames in memory, decode them and count the decoded frames."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(encoder, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for value in np.linspace(0, 255, num_frames, dtype=np.uint8):
            image = np.full((64, 64, 3), value, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        output.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        return len(list(source.decode(video=0)))


def check_links() -> Iterator[Row]:
    """The folders of `LINKED`: links in a checkout, folders in a wheel."""
    for name in LINKED:
        path = PACKAGE / name
        status: Literal["ok", "broken"] = "ok" if path.is_dir() else "broken"
        kind = f"link to {path.readlink()}" if path.is_symlink() else "folder"
        yield Row(
            name=f"arvid/{name}",
            status=status,
            detail=kind if status == "ok" else "leads to no folder",
            advice=f"Restore it: git config core.symlinks true && git checkout -- arvid/{name}",
            needed=True,
        )


def check_folders() -> Iterator[Row]:
    """Whether the cache folder is writable."""
    from arvid.files import cache_dir

    folder = cache_dir()
    advice = "Set ARVID_CACHE to a folder that can be written."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Row(name="cache", status="broken", detail=str(error), advice=advice, needed=True)
    else:
        yield Row(name="cache", status="ok", detail=str(folder))


def check_assets() -> Iterator[Row]:
    """The embedded weights that ship with arvid."""
    files = sorted((PACKAGE / "assets").rglob("*.safetensors"))
    for file in files:
        size = file.stat().st_size / 1000
        yield Row(name=f"assets/{file.name}", status="ok", detail=f"{size:.0f} kB")
    if not files:
        yield Row(
            name="assets",
            status="missing",
            detail="no embedded weights",
            advice="The demo needs them: reinstall arvid, or git checkout -- arvid/assets",
        )


def check_browser() -> Iterator[Row]:
    """Chromium. Only the browser test of the comparison page uses it."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    yield Row(
        name="chromium",
        status="ok" if found else "missing",
        detail=found or "not on the PATH",
        advice="Only the page's browser test needs it (Debian: apt install chromium).",
    )


def check_weights() -> Iterator[Row]:
    """Published weights that some metrics need."""
    from arvid.downloading import has_checksum
    from arvid.weights import KNOWN

    for name, item in KNOWN.items():
        present = item.path.is_file()
        genuine = present and has_checksum(item.path, item.digest)
        what = str(item.path) if genuine else "not the published file" if present else "absent"
        yield Row(
            name=item.file,
            status="ok" if genuine else "broken" if present else "missing",
            detail=f"{what}; for {item.purpose}",
            advice=item.advice if present or not item.url else f"arvid weights get {name}",
        )


CHECKS: dict[str, tuple[Callable[[], Iterator[Row]], ...]] = {
    "Versions": (check_python, check_packages, check_imports),
    "Devices": (check_devices,),
    "Video": (check_codecs,),
    "Files": (check_links, check_folders, check_assets),
    "Optional": (check_browser, check_weights),
}


def examine() -> dict[str, list[Row]]:
    """Rows of every check, by section."""
    return {
        title: [row for check in checks for row in _rows(check)] for title, checks in CHECKS.items()
    }


def _rows(check: Callable[[], Iterator[Row]]) -> list[Row]:
    try:
        return list(check())
    except ImportError as error:
        return [_unusable(check.__name__.removeprefix("check_"), error)]


def render(sections: dict[str, list[Row]]) -> str:
    """The rows as text, with advice below each row that is not ok, and the verdict at the end."""
    from arvid.terminal import wrapped

    names = [row.name for rows in sections.values() for row in rows]
    width = min(max(map(len, names), default=0), LONGEST_NAME) + 2
    lines: list[str] = []
    for title, rows in sections.items():
        lines += ["", title]
        for row in rows:
            start = f"  {row.status:<9}{row.name:<{width}}"
            if len(row.name) >= width:  # a long name has a line for itself
                lines.append(start.rstrip())
                start = " " * (11 + width)
            lines.append(wrapped(f"{start}{row.detail}", 11 + width))
            if row.status != "ok" and row.advice:
                lines.append(wrapped(f"{'':11}-> {row.advice}", 14))
    return "\n".join([*lines[1:], "", _verdict(sections)])


LONGEST_NAME = 40
"""Letters of a name that share a line with their row's detail."""


def _verdict(sections: dict[str, list[Row]]) -> str:
    faults = _faults(sections)
    if faults:
        return f"arvid cannot run here: {', '.join(row.name for row in faults)}."
    return "arvid can run here."


def _faults(sections: dict[str, list[Row]]) -> list[Row]:
    return [r for rows in sections.values() for r in rows if r.needed and r.status != "ok"]
