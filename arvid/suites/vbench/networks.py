"""Networks of the dimensions, with weights that are already on this machine. Nothing is downloaded.

DINO and CLIP are transformers folders or hub names; hub names are looked up in the hub's cache. The others are single
files, at a given path or in the weights folder (`arvid.weights`). VBench runs CLIP in half precision on a GPU; here all
networks use float32.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.weights import KNOWN, locate

DINO = "facebook/dino-vitb16"
CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
DINO_EPS = 1e-6
"""Epsilon of the authors' layer norms; the configuration on the hub has 1e-12."""
_POSITION_OFFSET = 0.1
"""Added to the number of cells before the interpolation factor is computed, as in the authors' code."""
_UNREADABLE = (RuntimeError, TypeError, AttributeError, EOFError, ValueError, UnpicklingError)

Encoder = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]
"""Maps prepared frames to features of unit length."""


class DinoEncoder:
    """CLS feature of DINO (arXiv:2104.14294), for frames of any shape.

    Positional embeddings are interpolated as in the authors' code, which VBench uses: bicubic, by a factor that is 0.1
    cell too large. This shifts positions slightly; transformers' own interpolation does not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        embeddings: Any = self.model.embeddings
        embeddings.interpolate_pos_encoding = self._positions

    @torch.no_grad()
    def __call__(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        device = next(self.model.parameters()).device
        found = self.model(pixel_values=frames.to(device), interpolate_pos_encoding=True)
        return F.normalize(found.last_hidden_state[:, 0], dim=-1)

    def _positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        embeddings: Any = self.model.embeddings
        table: Tensor = embeddings.position_embeddings  # (1, 1 + side², D)
        if tokens.shape[1] == table.shape[1] and height == width:
            return table  # the training resolution needs no interpolation
        side = math.isqrt(table.shape[1] - 1)
        cells = (height // embeddings.patch_size, width // embeddings.patch_size)
        grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
        factors = [(cell + _POSITION_OFFSET) / side for cell in cells]
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        assert grid.shape[-2:] == cells
        return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


class ClipEncoder:
    """Image and text features of CLIP (arXiv:2103.00020), of unit length.

    Args:
        model: transformers' CLIPModel.
        tokenizer: its tokenizer, needed only by `text`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        pooled = self.model.vision_model(pixel_values=frames.to(self.model.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def text(self, text: str) -> Float[Tensor, " d"]:
        """Feature of one text, without padding."""
        tokens = self.tokenizer([text], return_tensors="pt").to(self.model.device)
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)[0]


def load_dino(name: str = DINO) -> DinoEncoder:
    """DINO ViT-B/16. Raises UserError if it is neither a folder nor in the hub's cache."""
    from transformers import ViTModel  # slow to import

    config = {"layer_norm_eps": DINO_EPS, "add_pooling_layer": False}
    return DinoEncoder(_pretrained(ViTModel, name, "Subject consistency", **config))


def load_clip(name: str, purpose: str) -> ClipEncoder:
    """CLIP by hub name or folder. Raises UserError if it is neither a folder nor in the hub's cache."""
    from transformers import AutoTokenizer, CLIPModel  # slow to import

    model = _pretrained(CLIPModel, name, purpose)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _absent(name, purpose, error) from error
    return ClipEncoder(model, tokenizer)


def load_laion_head(path: Path | None = None) -> nn.Linear:
    """LAION's aesthetic predictor on CLIP L/14: (N, 768) of unit length -> (N, 1), about 1 to 10.

    Raises UserError if the file is missing or is a different file.
    """
    path = find("laion-aesthetic-l14", path)
    head = nn.Linear(768, 1)
    _fill(head, path)
    return head


def load_musiq(path: Path | None = None) -> nn.Module:
    """MUSIQ (arXiv:2108.05997) trained on SPAQ, as pyiqa builds it: (N, 3, H, W) in [0, 1] -> (N, 1) of 0 to 100.

    Raises UserError if pyiqa or the file is missing, or if it is a different file.
    """
    path = find("musiq-spaq", path)
    try:
        musiq = importlib.import_module("pyiqa.archs.musiq_arch")
    except ImportError as error:
        raise UserError(
            f"Imaging quality needs the package pyiqa: pip install 'arvid[vbench]'. ({error})"
        ) from error
    network: nn.Module = musiq.MUSIQ(pretrained=False)
    _fill(network, path)
    return network


def find(name: str, path: Path | None) -> Path:
    """Path of weights: `path`, or the published file in the weights folder. Raises UserError if it is missing."""
    if path is None:
        return locate(name)
    if not path.is_file():
        known = KNOWN[name]
        raise UserError(
            f"{path} does not exist: {known.purpose} needs {known.file} ({known.digest}). {known.advice}"
        )
    return path


def weights_hash(module: nn.Module) -> str:
    """Hex SHA-256 over all tensors of a network, sorted by name: independent of the file format."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pretrained(cls: Any, name: str, purpose: str, **config: Any) -> nn.Module:
    try:
        model, info = cls.from_pretrained(
            name, local_files_only=True, output_loading_info=True, **config
        )
    except (OSError, ValueError) as error:
        raise _absent(name, purpose, error) from error
    # transformers initialises missing weights at random and only warns
    wrong = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]]
    if wrong:
        raise UserError(
            f"{name}: not the network that {purpose.lower()} needs: {cls.__name__} finds no fitting "
            f"weights for {wrong[0]} and {len(wrong) - 1} others."
        )
    network: nn.Module = model.float()
    return network


def _absent(name: str, purpose: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"{purpose} needs {name}, which is neither a folder of transformers nor in the hub's cache. "
        f"Get it with `hf download {name}`, or name a folder that holds config.json, "
        f"model.safetensors and, for CLIP, the tokenizer. ({reason})"
    )


def _fill(network: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    except _UNREADABLE as error:
        raise UserError(f"{path} does not hold the weights of this network: {error}") from error
    network.eval().requires_grad_(False)
