"""Published weights that arvid uses but does not ship: purpose, source and path.

Missing weights are an error that says what to do; nothing replaces them silently. They are downloaded only inside a
block of `downloading`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arvid.downloading import download, has_checksum
from arvid.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One file of published weights."""

    file: str
    purpose: str
    source: str
    digest: str
    """Beginning of its checksum: 'sha256:…', or 'git-blob:…' as `git hash-object` prints it."""
    url: str | None = None
    """Address of the file itself, if there is one."""
    folder: Literal["arvid", "torch-hub"] = "arvid"

    @property
    def path(self) -> Path:
        """Path where the file must be."""
        return (weights_dir() if self.folder == "arvid" else torch_hub_dir()) / self.file

    @property
    def advice(self) -> str:
        """How to get the file, for an error message."""
        return f"Get it from {self.source} (checksum {self.digest}) and put it at {self.path}."


def weights_dir() -> Path:
    """Folder of weights: ARVID_WEIGHTS, by default `~/.cache/arvid/weights`."""
    return Path(os.environ.get("ARVID_WEIGHTS") or "~/.cache/arvid/weights").expanduser()


def torch_hub_dir() -> Path:
    """Folder where torchvision looks for its weights (TORCH_HOME moves it)."""
    import torch  # slow to import

    return Path(torch.hub.get_dir()) / "checkpoints"


def _torchvision(file: str, network: str) -> Weights:
    url = f"https://download.pytorch.org/models/{file}"
    return Weights(
        file=file,
        purpose=f"LPIPS with the {network} backbone",
        source=url,
        url=url,
        digest="sha256:" + file.removesuffix(".pth").rpartition("-")[2],
        folder="torch-hub",
    )


_CMVQ = "https://github.com/JunyaoHu/common_metrics_on_video_quality/raw/main/fvd"
_LAION = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main"
_PYIQA = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights"
KNOWN: dict[str, Weights] = {
    "i3d-torchscript": Weights(
        file="i3d_torchscript.pt",
        purpose="FVD in StyleGAN-V's protocol (I3D, Kinetics-400)",
        source="https://github.com/universome/stylegan-v (its FVD script names the link)",
        digest="git-blob:93daef59c7ae0e9e8f76225521407e60cbafa6aa",
        url=f"{_CMVQ}/styleganv/i3d_torchscript.pt",
    ),
    "i3d-pretrained-400": Weights(
        file="i3d_pretrained_400.pt",
        purpose="FVD in the protocol of TATS, OmniTokenizer and NBP (I3D, Kinetics-400)",
        source="https://github.com/songweige/TATS (folder tats/fvd)",
        digest="git-blob:a867b87ac3a9097d200598b1d48a1b890d8ec744",
        url=f"{_CMVQ}/videogpt/i3d_pretrained_400.pt",
    ),
    "alexnet": _torchvision("alexnet-owt-7be5be79.pth", "AlexNet"),
    "vgg": _torchvision("vgg16-397923af.pth", "VGG-16"),
    "squeeze": _torchvision("squeezenet1_1-b8a52dc0.pth", "SqueezeNet"),
    "videomae-v2-g": Weights(
        file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        purpose="FVD over VideoMAE v2 features in cd-fvd's protocol (ViT-g, Something-Something v2)",
        source="https://huggingface.co/OpenGVLab/VideoMAE2 (folder mae-g)",
        digest="sha256:5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
        url="https://huggingface.co/OpenGVLab/VideoMAE2/resolve/main/mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    ),
    "laion-aesthetic-l14": Weights(
        file="sa_0_4_vit_l_14_linear.pth",
        purpose="VBench's aesthetic quality (LAION's linear head on CLIP L/14)",
        source=f"{_LAION}/sa_0_4_vit_l_14_linear.pth",
        digest="sha256:2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        url=f"{_LAION}/sa_0_4_vit_l_14_linear.pth",
    ),
    "raft-things": Weights(
        file="raft-things.pth",
        purpose="VBench's dynamic degree and static filter (RAFT, Chairs and Things)",
        source="https://github.com/princeton-vl/RAFT (download_models.sh unpacks models.zip)",
        digest="sha256:fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
    ),
    "musiq-spaq": Weights(
        file="musiq_spaq_ckpt-358bb6af.pth",
        purpose="VBench's imaging quality (MUSIQ, SPAQ)",
        source=f"{_PYIQA}/musiq_spaq_ckpt-358bb6af.pth",
        digest="sha256:358bb6af",
        url=f"{_PYIQA}/musiq_spaq_ckpt-358bb6af.pth",
    ),
}


def known(name: str) -> Weights:
    """The weights of a name. Raises UserError, with a suggestion, for an unknown name."""
    if name not in KNOWN:
        close = difflib.get_close_matches(name, KNOWN, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"There are no weights {name!r}.{suggestion} Known: {', '.join(KNOWN)}.")
    return KNOWN[name]


def how_to_get(name: str) -> str:
    """Advice for missing weights: the command that downloads them, if there is one, and where they are from."""
    found = KNOWN[name]
    if not found.url:
        return found.advice
    return f"`arvid weights get {name}` downloads it. By hand: {found.advice}"


def locate(name: str) -> Path:
    """Path of known weights. Raises UserError if the file is missing or is not the published one."""
    weights = KNOWN[name]
    if not weights.path.is_file() and _downloads.get():
        _download(weights)
    if not weights.path.is_file():
        raise UserError(
            f"{weights.purpose} needs {weights.file}, which is missing. {how_to_get(name)}"
        )
    if not has_checksum(weights.path, weights.digest):
        raise UserError(
            f"{weights.path} is not the published file: its checksum is not {weights.digest}. "
            f"It may be incomplete. {weights.advice}"
        )
    return weights.path


@contextmanager
def downloading(allowed: bool) -> Iterator[None]:
    """Inside the block `locate` downloads what is missing, if that is allowed."""
    before = _downloads.set(allowed)
    try:
        yield
    finally:
        _downloads.reset(before)


_downloads: ContextVar[bool] = ContextVar("downloads", default=False)


def _download(weights: Weights) -> None:
    """Put the published file into its place. Raises UserError where it cannot be had, or is another one."""
    if weights.url is None:
        raise UserError(f"{weights.file} cannot be downloaded as it is. {weights.advice}")
    try:
        download(weights.url, weights.path, checksum=weights.digest)
    except UserError as error:
        raise UserError(f"{error} {weights.advice}") from error
