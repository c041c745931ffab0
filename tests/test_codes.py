"""Vectors behind ids: those of magvit_fsq are what its decoder sees, and no stored description changes with them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from arvid.codes import ScalarCodes
from arvid.contracts import TokenSpec, UserError
from arvid.data.shard_files import Manifest, begin, read_manifest
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ, PublishedFSQ

BACKBONE = Backbone(
    base=8, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=0, num_groups=2
)


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (3,), (4, 7)])
def test_scalar_codes_are_those_of_fsq(levels: tuple[int, ...]) -> None:
    codes, theirs = ScalarCodes(levels), PublishedFSQ(list(levels), return_indices=False)
    ids = torch.randint(math.prod(levels), (5, 7))
    assert torch.equal(codes.vectors(ids), theirs._indices_to_codes(ids))
    assert torch.equal(codes.nearest(codes.vectors(ids)), ids)


def test_the_nearest_code_is_the_nearest_of_all() -> None:
    codes = ScalarCodes((4, 5))
    table = codes.vectors(torch.arange(20))
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    assert torch.equal(codes.nearest(points), torch.cdist(points, table).argmin(-1))


def test_levels_are_checked() -> None:
    with pytest.raises(UserError, match="at least 2"):
        ScalarCodes((4, 1))
    with pytest.raises(UserError, match="got none"):
        ScalarCodes(())


def test_a_tokenizer_that_shows_codes_is_described_as_before(tmp_path: Path) -> None:
    tokenizer = MagvitFSQ(backbone=BACKBONE, levels=(4, 5))
    ids = torch.randint(20, (1, 2, 3, 3))
    assert tokenizer.spec.codes is not None
    assert torch.equal(tokenizer.spec.codes.vectors(ids), tokenizer.indices_to_codes(ids))
    plain = TokenSpec("discrete", 20, tokenizer.spec.strides, True)
    assert tokenizer.spec == plain
    assert hash(tokenizer.spec) == hash(plain)
    assert repr(tokenizer.spec) == repr(plain)
    manifest = Manifest(
        tokenizer="t",
        data="d",
        spec=tokenizer.spec,
        clip_shape=(3, 6, 6),
        classes=(),
        num_clips=4,
        clips_per_shard=2,
    )
    stored = manifest.stored()
    assert list(stored["spec"]) == ["type", "size", "strides", "causal", "exact_prefix"]
    assert manifest.name_of(0) == dataclasses.replace(manifest, spec=plain).name_of(0)
    assert begin(tmp_path, manifest) == begin(tmp_path, manifest) == read_manifest(str(tmp_path))
