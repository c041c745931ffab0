"""Next-scale prediction: scales, attention mask, losses and windows, against independent code in this file."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.codes import Codes, ScalarCodes
from arvid.contracts import Condition, ContextSpec, Request, Size, TokenGrid, TokenSpec, UserError
from arvid.paradigms.next_scale import NextScale
from arvid.paradigms.next_scale.resize import enlarge, shrink
from arvid.paradigms.next_scale.scales import ScaleRms, Scales, check_sides, default_sides

SIZE = Size(dim=32, depth=2, num_heads=2, head_dim=32, head_depth=1)
GRID = TokenGrid(3, 4, 6)
SIDES = [(1, 2), (3, 4), (4, 6)]
LEVELS = (5, 4, 3)
IDS = TokenSpec("discrete", 60, (4, 8, 8), True)
CODED = dataclasses.replace(IDS, codes=ScalarCodes(LEVELS))
VALUES = TokenSpec("continuous", 3, (4, 8, 8), True)
LABEL = Condition(values={"label": torch.tensor([0, 2])})


def model(spec: TokenSpec = IDS, **options: Any) -> NextScale:
    torch.manual_seed(0)
    return NextScale(spec, GRID, ContextSpec(conditions={"label": 3}), SIZE, **options).eval()


def clip(spec: TokenSpec, num_frames: int = GRID.t, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_frames, GRID.h, GRID.w)
    if spec.type == "discrete":
        return torch.randint(spec.size, shape, generator=generator)
    return torch.randn(*shape, spec.size, generator=generator)


def by_torch(x: Tensor, side: tuple[int, int], **options: Any) -> Tensor:
    """Resized by torch's own function: (N, h, w, C)."""
    return F.interpolate(x.movedim(-1, 1), side, **options).movedim(1, -1)


# Scales


@pytest.mark.parametrize(("old", "new"), [((4, 6), (3, 4)), ((16, 16), (13, 5)), ((5, 5), (1, 2))])
def test_resizing_is_torchs(old: tuple[int, int], new: tuple[int, int]) -> None:
    large, small = torch.randn(2, *old, 3), torch.randn(2, *new, 3)
    torch.testing.assert_close(shrink(large, new), by_torch(large, new, mode="area"))
    torch.testing.assert_close(enlarge(small, old), by_torch(small, old, mode="bicubic"))


def test_sides_are_halved_until_one_is_1() -> None:
    assert default_sides(TokenGrid(1, 16, 16)) == [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16)]
    assert default_sides(TokenGrid(1, 5, 12)) == [(1, 2), (2, 3), (3, 6), (5, 12)]
    assert default_sides(TokenGrid(1, 1, 1)) == [(1, 1)]


@pytest.mark.parametrize(
    "sides", [[], [(2, 2)], [(0, 1), (4, 6)], [(2, 2), (2, 2), (4, 6)], [(3, 2), (2, 3), (4, 6)]]
)
def test_sides_that_do_not_grow_to_the_grid_are_refused(sides: list[tuple[int, int]]) -> None:
    with pytest.raises(UserError, match="to the token grid of 4x6"):
        check_sides(sides, GRID)


def test_scales_of_continuous_tokens_are_a_residual_pyramid() -> None:
    """VAR's algorithm 1 without its codebook and convolutions, line by line."""
    frames = clip(VALUES)[0]
    split = Scales(VALUES, SIDES).split(frames)
    rest, total = frames.clone(), torch.zeros_like(frames)
    for k, side in enumerate(SIDES):
        found = by_torch(rest, side, mode="area")
        torch.testing.assert_close(split.targets[k], found)
        whole = by_torch(found, SIDES[-1], mode="bicubic") if side != SIDES[-1] else found
        rest, total = rest - whole, total + whole
        if k < 2:
            torch.testing.assert_close(split.shown[k], by_torch(total, SIDES[k + 1], mode="area"))
    torch.testing.assert_close(total, frames)


def test_scales_of_codes_are_the_nearest_ones_to_the_mean() -> None:
    frames = clip(CODED)[0]
    split = Scales(CODED, SIDES).split(frames)
    digits = torch.stack([frames % 5, frames // 5 % 4, frames // 20], dim=-1)
    table = torch.stack([(digits[..., i] - n // 2) / (n // 2) for i, n in enumerate(LEVELS)], -1)
    every = CODED.codes.vectors(torch.arange(60))  # type: ignore[union-attr]
    for side, found in zip(SIDES, split.targets, strict=True):
        mean = by_torch(table, side, mode="area")
        distance = (mean[..., None, :] - every).square().sum(-1)
        least = distance.gather(-1, found[..., None])[..., 0]
        torch.testing.assert_close(least, distance.amin(-1))
    assert torch.equal(split.targets[-1], frames)
    assert all(torch.equal(a, b) for a, b in zip(split.shown, split.targets, strict=False))


def test_scales_of_ids_without_codes_are_those_at_the_centres() -> None:
    frames = torch.arange(24).view(1, 4, 6)
    split = Scales(IDS, SIDES).split(frames)
    assert split.targets[0].tolist() == [[[13, 16]]]  # row 2, columns 1 and 4
    assert split.targets[1][0, :, 0].tolist() == [0, 12, 18]  # rows 0.67, 2, 3.33 of column 0.75


def test_codes_of_others_serve_too() -> None:
    class Table(Codes):
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def vectors(self, ids: Tensor) -> Tensor:
            return self.rows[ids]

        def nearest(self, vectors: Tensor) -> Tensor:
            return (
                torch.cdist(vectors.flatten(0, -2), self.rows).argmin(-1).view(vectors.shape[:-1])
            )

    spec = dataclasses.replace(IDS, codes=Table(torch.arange(60.0)[:, None]))
    frames = torch.tensor([[[10, 20], [30, 40]]])
    assert Scales(spec, [(1, 1), (2, 2)]).split(frames).targets[0].item() == 25


# The sequence


def test_a_scale_sees_itself_and_all_before_it() -> None:
    net = model(scales=tuple(SIDES))
    blocks = net.blocks.tolist()
    lengths = [1, *[2, 12, 24] * 3]  # the label, then three frames of three scales
    assert blocks == [i for i, length in enumerate(lengths) for _ in range(length)]
    assert torch.equal(net.mask(39).dense(), net.blocks[:39, None] >= net.blocks[None, :39])


@pytest.mark.parametrize("spec", [IDS, CODED, VALUES], ids=["ids", "codes", "values"])
def test_a_frame_depends_on_those_before_it_alone(spec: TokenSpec) -> None:
    net, tokens = model(spec, scales=tuple(SIDES)), clip(spec)
    other = torch.cat([tokens[:, :1], clip(spec, seed=1)[:, 1:]], dim=1)
    losses = []
    for frames in (tokens, other):
        torch.manual_seed(0)
        losses.append(net.loss(frames, LABEL))
    assert losses[0]["frame_0"] == losses[1]["frame_0"]
    assert losses[0]["frame_1"] != losses[1]["frame_1"]


@pytest.mark.parametrize("spec", [IDS, VALUES], ids=["ids", "values"])
def test_a_scale_is_not_shown_itself(spec: TokenSpec) -> None:
    """Inputs of scale k depend on the frame's scales before k, and on no other scale of the frame."""
    net, frames = model(spec, scales=tuple(SIDES)), clip(spec)[:, 0]
    shown = net.scales.split(frames).shown
    before = net.before(None, 2)[:, 0]
    x = net.inputs(shown, before)
    for k, end in ((0, 2), (1, 14)):
        changed = [s if j < k else clip(spec, seed=9)[:, 0, : s.shape[1], : s.shape[2]]
                   for j, s in enumerate(shown)]  # fmt: skip
        y = net.inputs(changed, before)
        assert torch.equal(y[:, :end], x[:, :end])
        assert not torch.equal(y[:, end:], x[:, end:])
    later = net.inputs(shown, before, first=1)
    torch.testing.assert_close(later, x[:, 2:])


# Training


def test_the_loss_is_of_all_scales_and_per_token_of_the_last() -> None:
    losses = model(scales=tuple(SIDES)).loss(clip(IDS), LABEL)
    parts = [losses[f"scale_{k}"] for k in range(3)]
    mean = (2 * parts[0] + 12 * parts[1] + 24 * parts[2]) / 38
    torch.testing.assert_close(losses["loss"].detach(), mean)
    assert losses["per_token"] == parts[2]
    by_frame = torch.stack([losses[f"frame_{i}"] for i in range(3)])
    torch.testing.assert_close(by_frame.mean(), parts[2])


def test_the_spread_of_a_scale_is_measured_and_then_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScaleRms, "STEPS", 2)
    net = model(VALUES, scales=tuple(SIDES)).train()
    clips = [3 * clip(VALUES, seed=i) for i in range(3)]
    assert net.spread is not None
    for tokens in clips:  # a step of two batches each
        net.loss(tokens[:1], Condition())
        net.loss(tokens[1:], Condition())
        net.end_step()
    assert net.spread.num_steps == 2
    squares = [
        torch.stack([t.square().mean() for t in net.scales.split(c.flatten(0, 1)).targets])
        for c in clips[:2]
    ]
    torch.testing.assert_close(net.spread.values, torch.stack(squares).mean(0).sqrt())
    assert net.spread.values[2] > 1.5


def test_a_step_with_a_clip_that_is_not_finite_is_not_measured() -> None:
    net, tokens = model(VALUES).train(), clip(VALUES)
    broken = torch.cat([tokens[:1], torch.full_like(tokens[1:], torch.nan)])
    for batch in (broken, tokens, broken):
        net.loss(batch, Condition())
        net.end_step()
    assert net.spread is not None
    assert net.spread.num_steps == 1
    assert net.spread.values.isfinite().all()
    assert (net.spread.values != 1).all()


def test_shown_errors_are_to_be_mended() -> None:
    """Targets are residuals to the corrupted canvas, so canvas plus last tokens gives the frame again."""
    frames, error = clip(VALUES)[0], torch.randn(3, 1, 2, 3)

    def corrupt(tokens: Tensor, k: int) -> Tensor:
        return tokens + error if k == 0 else tokens

    split = Scales(VALUES, SIDES).split(frames, corrupt)
    first = by_torch(split.targets[0] + error, SIDES[-1], mode="bicubic")
    second = by_torch(split.targets[1], SIDES[-1], mode="bicubic")
    torch.testing.assert_close(split.targets[1], by_torch(frames - first, SIDES[1], mode="area"))
    torch.testing.assert_close(first + second + split.targets[2], frames)


def test_at_most_the_given_share_of_ids_is_wrong() -> None:
    net = model(corruption=0.5)
    tokens = torch.zeros(2000, 3, 4, dtype=torch.long)
    wrong = (net._corrupt(tokens, 1) != 0).float()
    assert wrong.mean() == pytest.approx(0.25 * 59 / 60, abs=0.01)
    assert wrong.mean((1, 2)).max() <= 0.95
    assert net.scales.split(clip(IDS)[0], net._corrupt).targets[-1].equal(clip(IDS)[0])


def test_a_clip_is_learned_by_heart() -> None:
    net, tokens = model(CODED, condition_dropout=0.0).train(), clip(CODED)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        net.loss(tokens, LABEL)["loss"].backward()
        optimizer.step()
    greedy = net.options_for("discrete")().replace(temperature=0.0)
    drawn = net.eval().generate(Request(LABEL, GRID, options=greedy))
    assert (drawn == tokens).float().mean() > 0.95


# Sampling


@pytest.mark.parametrize("spec", [CODED, VALUES], ids=["codes", "values"])
@pytest.mark.parametrize("overlap", [None, 2])
def test_longer_clips_go_on_in_windows(spec: TokenSpec, overlap: int | None) -> None:
    net, grid = model(spec, scales=tuple(SIDES)), GRID.with_frames(9)
    prefix = clip(spec, 4)  # longer than trained itself
    drawn = []
    for use_cache in (True, False):
        own = net.options_for(spec.type)().replace(overlap=overlap, guidance=2.0)
        own = own.replace(use_cache=use_cache)
        if spec.type == "continuous":
            own = own.replace(diffusion_steps=2)
        steps: list[int] = []
        generator = torch.Generator().manual_seed(0)
        request = Request(
            LABEL,
            grid,
            prefix=prefix,
            options=own,
            generator=generator,
            on_step=lambda: steps.append(1),  # noqa: B023
        )
        drawn.append(net.generate(request))
        said = net.num_evaluations(grid, prefix_frames=4, options=own)
        assert len(steps) == said["transformer"] == 15
    assert drawn[0].shape[1] == 9
    assert torch.equal(drawn[0][:, :4], prefix)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)


def test_a_window_begins_with_its_overlap_alone() -> None:
    """With an overlap of one frame, the next frame depends on no earlier frame."""
    net, grid = model(), GRID.with_frames(4)
    drawn = []
    for seed in (0, 1):
        prefix = torch.cat([clip(IDS, 2, seed), clip(IDS, 1, 7)], dim=1)
        generator = torch.Generator().manual_seed(0)
        own = net.options_for("discrete")().replace(overlap=1)
        request = Request(LABEL, grid, prefix=prefix, options=own, generator=generator)
        drawn.append(net.generate(request)[:, 3])
    assert torch.equal(drawn[0], drawn[1])


def test_too_large_overlaps_are_refused() -> None:
    net = model()
    own = net.options_for("discrete")().replace(overlap=3)
    with pytest.raises(UserError, match="overlap of 3 latent frames leaves nothing"):
        net.generate(Request(LABEL, GRID.with_frames(5), options=own))


def test_guidance_rises_over_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(scales=tuple(SIDES))
    told: list[float] = []
    sample = net.head.sample

    def noted(hidden: Tensor, **given: Any) -> Tensor:
        told.append(given["options"].guidance)
        assert given["null_hidden"] is not None
        return sample(hidden, **given)

    monkeypatch.setattr(net.head, "sample", noted)
    own = net.options_for("discrete")().replace(guidance=3.0, guidance_min=1.0)
    net.generate(Request(LABEL, GRID.with_frames(1), options=own))
    assert told == [1.0, 2.0, 3.0]


def test_prefixes_of_other_tokenizers_are_refused() -> None:
    prefix = clip(IDS)[:, :1].clone()
    prefix[0, 0, 0, 0], prefix[0, 0, 0, 1] = 0, 60
    with pytest.raises(UserError, match="ids from 0 to 60"):
        model().generate(Request(LABEL, GRID, prefix=prefix))
