"""Samples a benchmark's images: resumable, split over processes, the same for any number of processes.

The images of one prompt are one batch with the seeds s, s + 1, ..., as in the benchmarks' own scripts (GenEval and
T2I-CompBench start each prompt at seed 42). So a prompt's images do not depend on the process or on earlier runs. A
manifest beside the images records model, seed and prompts, so that images of others cannot be mixed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from arvid.errors import UserError
from arvid.files import atomic_write, sha256_json
from arvid.progress import Bar
from arvid.sampling.contact_sheet import write_png
from arvid.suites.image_benchmarks.benchmark import Batch, Part
from arvid.suites.manifest import claim

DEFAULT_SEED = 42

Images = UInt8[np.ndarray, "b h w 3"]


class ImageSampler(Protocol):
    """Maps prompts to RGB images."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        """One image per prompt and seed. Equal prompts and seeds must give equal images."""


def sample_part(
    part: Part,
    sampler: ImageSampler,
    *,
    model: Mapping[str, Any],
    seed: int = DEFAULT_SEED,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> None:
    """Sample the missing images of a part.

    Args:
        part: prompts and files.
        sampler: makes the images.
        model: description of the sampler as plain data, stored beside the images.
        seed: seed of each prompt's first image. The next images have the next seeds.
        shard: index of this process and number of processes.
        progress: show a progress bar over the prompts.

    Raises UserError if the folder holds images of another model, seed or prompt list, and for images of a wrong shape
    or type.
    """
    claim(part.folder, describe(part, model=model, seed=seed))
    for path, text in part.side_files:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    mine = part.batches[shard[0] :: shard[1]]
    for batch in Bar(mine, part.folder.name, unit="batch", hidden=not progress):
        if not all(path.exists() for path in batch.files):
            seeds = range(seed, seed + batch.num_images)
            images = sampler([batch.prompt] * batch.num_images, seeds)
            _write(batch, images)


def describe(part: Part, *, model: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything that the images of a part depend on, as plain data."""
    prompts = [
        (b.prompt, [p.relative_to(part.folder).as_posix() for p in b.files]) for b in part.batches
    ]
    return {
        "model": dict(model),
        "seed": seed,
        "num_prompts": len(part.batches),
        "num_images": sum(batch.num_images for batch in part.batches),
        "num_files": sum(len(batch.files) for batch in part.batches),
        "prompts_sha256": sha256_json(prompts),
    }


def rewritten(part: Part, texts: Mapping[str, str]) -> Part:
    """The part with rewritten prompts for the model. `texts` maps original to rewritten prompts.

    File names and side files keep the original prompts. Raises UserError for prompts without a rewritten text.
    """
    missing = [batch.prompt for batch in part.batches if batch.prompt not in texts]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(part.batches)} prompts have no rewritten text, "
            f"e.g. {missing[0]!r}."
        )
    batches = (dataclasses.replace(b, prompt=texts[b.prompt]) for b in part.batches)
    return dataclasses.replace(part, batches=tuple(batches))


def _write(batch: Batch, images: Images) -> None:
    if images.dtype != np.uint8 or images.shape[0] != batch.num_images or images.shape[3:] != (3,):
        raise UserError(
            f"The sampler gave {images.dtype} {images.shape} instead of "
            f"{batch.num_images} uint8 images (H, W, 3)."
        )
    if len(batch.files) == 1:
        images = _grid(images)
    for path, image in zip(batch.files, images, strict=True):
        write_png(path, image)


def _grid(images: Images) -> Images:
    """One image (1, n·H, n·W, 3) from n·n square images, row by row."""
    side = round(len(images) ** 0.5)
    if side**2 != len(images) or images.shape[1] != images.shape[2]:
        raise UserError(f"{images.shape} is not a square number of square images.")
    return rearrange(images, "(r c) h w d -> 1 (r h) (c w) d", r=side)
