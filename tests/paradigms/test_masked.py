"""Masked prediction: schedules, kept tokens, losses, and the visibility of tokens in its network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    TokenType,
    UserError,
)
from arvid.nn.by_frame import losses_by_frame
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.nn.positions import rotation_of
from arvid.nn.tokens import from_sequence, to_sequence
from arvid.paradigms.masked import Masked, schedule
from arvid.paradigms.masked import paradigm as module
from arvid.paradigms.masked.sampling import MaskedSampling
from arvid.paradigms.masked.schedule import draw_num_masked, masked_after
from arvid.training.instantiate import instantiate

CONFIGS = Path(__file__).parents[2] / "configs/paradigms"
GRID = TokenGrid(3, 2, 4)
NUM = GRID.num_tokens
SIZE = Size(dim=32, depth=4, num_heads=2, head_dim=32, head_depth=1)
SPECS = {
    "discrete": TokenSpec("discrete", 11, (4, 8, 8), True),
    "continuous": TokenSpec("continuous", 4, (4, 8, 8), True),
}
PUBLISHED = {"magvit": "discrete", "mar": "continuous"}


def model(token_type: TokenType = "discrete", **options: Any) -> Masked:
    context = ContextSpec(conditions={"label": 3})
    return Masked(SPECS[token_type], GRID, context, SIZE, **options).eval()


def some_tokens(token_type: str, batch: int = 2) -> Tensor:
    shape = (batch, GRID.t, GRID.h, GRID.w)
    if token_type == "discrete":
        return torch.randint(11, shape)
    return torch.randn(*shape, 4)


def labels(batch: int = 2) -> Condition:
    return Condition(values={"label": torch.arange(batch) % 3})


# Schedules


def reference_masked(num_tokens: int, num_sets: int) -> list[int]:
    """MaskGIT's rule in numpy: ratio cos(π/2 · progress), rounded down, between 1 and one less than before."""
    left = [num_tokens]
    for progress in np.arange(1, num_sets) / num_sets:
        ratio = np.cos(np.pi / 2 * progress)
        left.append(int(np.clip(np.floor(ratio * num_tokens), 1, left[-1] - 1)))
    return [*left[1:], 0]


@pytest.mark.parametrize(("num_tokens", "num_sets"), [(1024, 12), (256, 64), (192, 16), (5, 1)])
def test_masked_tokens_follow_the_cosine(num_tokens: int, num_sets: int) -> None:
    assert masked_after(num_tokens, num_sets) == reference_masked(num_tokens, num_sets)


def test_magvits_schedule() -> None:
    """1,024 tokens in 12 steps. The expected numbers were computed by hand from the formula."""
    counts = [1015, 989, 946, 886, 812, 724, 623, 512, 391, 265, 133, 0]
    assert masked_after(1024, 12) == counts


@pytest.mark.parametrize("num_sets", [7, 8, 100])
def test_each_set_draws_a_token(num_sets: int) -> None:
    masked = masked_after(8, num_sets)
    sizes = -np.diff([8, *masked])
    assert sizes.min() >= 1
    assert sizes.sum() == 8


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 24), (0.5, 16), (0.75, 9), (0.9999, 1)])
def test_shares_of_masked_tokens_are_maskgits(
    monkeypatch: pytest.MonkeyPatch, uniform: float, expected: int
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(uniform))
    assert draw_num_masked("cosine", 24) == expected


def test_shares_of_masked_tokens_are_mars(monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, expected in ((0.7, 180), (0.9, 231), (1.0, 256)):
        monkeypatch.setattr(schedule, "draw_mask_ratio", lambda ratio=ratio: ratio)
        assert draw_num_masked("truncated", 256) == expected


# Sampling


class Scripted:
    """A fake network and head, with fixed ids and confidences of all positions for each set."""

    def __init__(self, net: Masked, ids: Tensor, confidence: Tensor) -> None:
        self.ids, self.confidence = ids, confidence  # (sets, B, N)
        self.known: list[Tensor] = []
        self.wanted = torch.empty(0)
        net.network.forward = self.forward  # type: ignore[method-assign]
        net.head.sample_with_confidence = self.sample  # type: ignore[method-assign,assign,union-attr]

    def forward(
        self, context: Tensor, tokens: Tensor, known: Tensor, wanted: Tensor, num: int, _: None
    ) -> Tensor:
        self.known.append(known)
        self.wanted = wanted
        assert torch.equal(known.shape[1] + torch.tensor(wanted.shape[1]), torch.tensor(num))
        return torch.zeros(*wanted.shape, SIZE.dim)

    def sample(self, hidden: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        i = len(self.known) - 1
        return self.ids[i].gather(1, self.wanted), self.confidence[i].gather(1, self.wanted)


def reference_decoding(
    ids: np.ndarray, confidence: np.ndarray, given: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """MaskGIT's decoding in numpy: the mask before each step, and the result, for one clip."""
    num_sets, num = ids.shape
    unknown = np.arange(num) >= given
    tokens, masks = np.full(num, -1), []
    for i, left in enumerate(reference_masked(num - given, num_sets)):
        masks.append(unknown)
        tokens = np.where(unknown, ids[i], tokens)
        score = np.where(unknown, confidence[i], np.inf)
        unknown = np.zeros(num, dtype=bool)
        unknown[np.argsort(score)[:left]] = True
    return masks, tokens


@pytest.mark.parametrize("given", [0, 1])
def test_the_surest_tokens_are_kept(given: int) -> None:
    net, sets, batch = model(), 6, 3
    ids = torch.randint(11, (sets, batch, NUM))
    confidence = torch.rand(sets, batch, NUM).log()
    scripted = Scripted(net, ids, confidence)
    prefix = some_tokens("discrete", batch)[:, :given] if given else None
    options = MaskedSampling(num_sets=sets, choice_temperature=0.0)
    request = Request(labels(batch), GRID, prefix=prefix, options=options)
    drawn = net.generate(request).flatten(1)
    num_given = given * GRID.tokens_per_frame
    for clip in range(batch):
        masks, tokens = reference_decoding(
            ids[:, clip].numpy(), confidence[:, clip].numpy(), num_given
        )
        for known, mask in zip(scripted.known, masks, strict=True):
            assert sorted(known[clip].tolist()) == np.flatnonzero(~mask).tolist()
        assert drawn[clip, num_given:].tolist() == tokens[num_given:].tolist()
    if prefix is not None:
        assert torch.equal(drawn[:, :num_given], prefix.flatten(1))


def test_kept_tokens_are_drawn_by_gumbel_noise() -> None:
    """Gumbel noise of scale 1 on log p keeps tokens as sampling from p without replacement does."""
    batch, net = 4000, model()
    p = torch.tensor([0.5, 0.3, 0.15, 0.05]).repeat(NUM // 4)[:4]
    confidence = torch.full((2, batch, NUM), -1e9)
    confidence[:, :, :4] = p.log()
    scripted = Scripted(net, torch.zeros(2, batch, NUM, dtype=torch.long), confidence)
    options = MaskedSampling(num_sets=2, choice_temperature=2.0)  # times 1 - 1/2
    generator = torch.Generator().manual_seed(0)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("arvid.paradigms.masked.sampling.masked_after", lambda *_: [NUM - 1, 0])
        net.generate(Request(labels(batch), GRID, options=options, generator=generator))
    kept = scripted.known[1][:, 0].bincount(minlength=4) / batch
    torch.testing.assert_close(kept, p, atol=0.03, rtol=0)


@pytest.mark.parametrize("token_type", SPECS)
def test_the_guidance_of_sets_is_mars(token_type: TokenType) -> None:
    net, seen = model(token_type), []
    name = "sample_with_confidence" if token_type == "discrete" else "sample"
    real = getattr(net.head, name)

    def sample(hidden: Tensor, **options: Any) -> Any:
        seen.append(options["options"].guidance)
        return real(hidden, **options)

    setattr(net.head, name, sample)
    options = net.options_for(token_type)(guidance=3.0).replace(num_sets=5, guidance_ramp=True)
    if isinstance(options, DiffusionSampling):
        options = options.replace(diffusion_steps=2)
    net.generate(Request(labels(), GRID, options=options))
    left = np.maximum(reference_masked(NUM, 5), 1)
    assert seen == pytest.approx(1 + 2.0 * (NUM - left) / NUM)


def test_continuous_tokens_are_drawn_once_in_a_random_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, sets, batch = model("continuous"), 5, 2
    orders = torch.stack([torch.randperm(NUM) for _ in range(batch)])
    monkeypatch.setattr("arvid.paradigms.masked.sampling.random_orders", lambda *_: orders)
    wanted: list[Tensor] = []
    real = net.network.forward

    def forward(
        context: Tensor, tokens: Tensor, known: Tensor, new: Tensor, num: int, _: None
    ) -> Tensor:
        assert torch.equal(known, orders[:, : known.shape[1]])
        wanted.append(new)
        return real(context, tokens, known, new, num)

    net.network.forward = forward  # type: ignore[method-assign]
    options = net.options_for("continuous")(diffusion_steps=2).replace(num_sets=sets)
    net.generate(Request(labels(), GRID, options=options))
    assert torch.equal(torch.cat(wanted, dim=1), orders)
    sizes = -np.diff([NUM, *reference_masked(NUM, sets)])
    assert [w.shape[1] for w in wanted] == sizes.tolist()


# Losses


def fixed_masks(monkeypatch: pytest.MonkeyPatch, orders: Tensor, num_masked: int) -> None:
    monkeypatch.setattr(module, "random_orders", lambda *_: orders)
    monkeypatch.setattr(module, "draw_num_masked", lambda *_: num_masked)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_on_ids_is_magvits(
    monkeypatch: pytest.MonkeyPatch, loss_on: str, smoothing: float
) -> None:
    net = model(loss_on=loss_on, label_smoothing=smoothing)
    tokens, orders, num_masked = (
        some_tokens("discrete"),
        torch.stack([torch.randperm(NUM)] * 2),
        9,
    )
    fixed_masks(monkeypatch, orders, num_masked)
    losses = net.loss(tokens, labels())
    sequence, everything = tokens.flatten(1), torch.arange(NUM).expand(2, -1)
    known = orders[:, num_masked:]
    context = net._copies(net.context(labels(), 2))
    hidden = net.network(context, sequence.gather(1, known), known, everything, NUM)
    assert isinstance(net.head, CategoricalHead)
    logits = (hidden @ net.head.logits.weight.T).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.eye(11)[sequence.numpy()] * (1 - smoothing) + smoothing / 11
    each = -(targets * log_p).sum(-1)  # (B, N)
    masked = np.zeros((2, NUM), dtype=bool)
    np.put_along_axis(masked, orders[:, :num_masked].numpy(), True, axis=1)
    weights = masked if loss_on == "masked" else np.ones_like(masked)
    expected = (each * weights).sum(1) / weights.sum(1)
    assert losses["loss"].item() == pytest.approx(expected.mean(), abs=1e-5)
    assert losses["per_token"].item() == pytest.approx(each[masked].mean(), abs=1e-5)
    frame = masked[:, 8:16]
    assert losses["frame_1"].item() == pytest.approx(each[:, 8:16][frame].mean(), abs=1e-5)


def test_losses_by_frame_leave_no_gaps() -> None:
    found = losses_by_frame(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0, 0, 2]]), 3)
    assert {name: value.item() for name, value in found.items()} == {
        "frame_0": 1.5,
        "frame_1": 3.0,
        "frame_2": 6.0,
    }
    assert losses_by_frame(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.long), 1) == {}


@pytest.mark.parametrize("token_type", SPECS)
def test_given_frames_are_never_masked(
    monkeypatch: pytest.MonkeyPatch, token_type: TokenType
) -> None:
    net, frame = model(token_type, prefix_share=1.0, loss_on="all").train(), GRID.tokens_per_frame
    real, numbers = net.network.forward, set()

    def forward(
        context: Tensor, tokens: Tensor, known: Tensor, wanted: Tensor, num: int, _: None
    ) -> Tensor:
        given = num - wanted.shape[1]
        assert torch.equal(known[:, :given], torch.arange(given).expand(2, -1))
        assert wanted.min() >= given
        numbers.add(given)
        return real(context, tokens, known, wanted, num)

    net.network.forward = forward  # type: ignore[method-assign]
    for _ in range(20):
        net.loss(some_tokens(token_type), labels())
    assert numbers == {frame, 2 * frame}


# Network


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("encoder_share", [0.0, 0.5])
def test_known_tokens_may_come_in_any_order(encoder_share: float, rotary: bool) -> None:
    net = model("continuous", encoder_share=encoder_share, rotary=rotary)
    known, wanted = torch.tensor([[3, 17, 8]]), torch.tensor([[0, 9]])
    tokens, context = torch.randn(1, 3, 4), torch.randn(1, 1, 32)
    before = net.network(context, tokens, known, wanted, NUM)
    again = net.network(context, tokens.flip(1), known.flip(1), wanted.flip(1), NUM).flip(1)
    torch.testing.assert_close(again, before, atol=1e-5, rtol=1e-5)
    for i in range(3):
        changed = tokens.clone()
        changed[:, i] += 1
        assert not torch.allclose(net.network(context, changed, known, wanted, NUM), before)


def test_rotary_attention_sees_differences_of_positions() -> None:
    """One layer without positional embeddings: shifting known and wanted tokens together changes nothing."""
    net = model("continuous", rotary=True).network
    net.layers.blocks = net.layers.blocks[:1]
    with torch.no_grad():
        net.positions.zero_()
        net.mask_token.zero_()
    moved = {}
    for row in (0, 1):  # of 2 x 4 tokens a frame
        ids = torch.tensor([[4 * row, 8 + 4 * row]])
        x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
        turns = net.rotary(0, 1 + NUM)  # type: ignore[misc]
        q = rotation_of(turns, 1 + ids)
        attn = net.layers.blocks[0].attn  # type: ignore[union-attr]
        moved[row] = attn(x, rotation=q)  # type: ignore[operator]
    torch.testing.assert_close(moved[0], moved[1])
    everything = torch.arange(NUM)[None]
    context, tokens = torch.randn(1, 1, 32), torch.randn(1, 3, 4)
    known, some = torch.tensor([[3, 17, 8]]), torch.tensor([[6, 1]])
    all_hidden = net(context, tokens, known, everything, NUM)
    torch.testing.assert_close(net(context, tokens, known, some, NUM), all_hidden[:, [6, 1]])


def test_the_network_with_an_encoder_is_mars() -> None:
    """MAR's places of positional embeddings and norms, computed here from the parameters for one clip."""
    net = model("continuous", encoder_share=0.5, context_copies=2).network
    encoder = net.encoder
    assert encoder is not None
    known, masked = [5, 11], [i for i in range(NUM) if i not in (5, 11)]
    tokens, context = torch.randn(1, 2, 4), torch.randn(1, 2, 32)
    projected = tokens @ net.embed.project.weight.T + net.embed.project.bias  # type: ignore[operator,union-attr]
    x = torch.cat([context, projected], dim=1) + encoder.positions[[0, 1, 7, 13]]
    x = encoder.norm_out(encoder.layers(encoder.norm_in(x)))
    x = x @ encoder.project.weight.T + encoder.project.bias
    padded = net.mask_token.repeat(1, 2 + NUM, 1)
    padded[:, [0, 1, 7, 13]] = x
    expected = net.norm(net.layers(padded + net.positions))[:, 2:] + net.head_positions
    hidden = net(context, tokens, torch.tensor([known]), torch.tensor([masked]), NUM)
    torch.testing.assert_close(hidden, expected[:, masked], atol=1e-5, rtol=1e-5)


def test_shorter_clips_are_drawn_and_longer_ones_refused() -> None:
    net = model()
    assert net.generate(Request(labels(), GRID.with_frames(2))).shape == (2, 2, 2, 4)
    with pytest.raises(
        UserError, match="4 latent frames were asked of a model with positions for 3"
    ):
        net.generate(Request(labels(), GRID.with_frames(4)))


def test_prefixes_of_other_shapes_and_ids_are_refused() -> None:
    net, prefix = model(), some_tokens("discrete")[:, :1]
    with pytest.raises(UserError, match=r"The prefix is \(2, 1, 2, 3\), not \(2, 1, 2, 4\)"):
        net.generate(Request(labels(), GRID, prefix=prefix[..., :3]))
    with pytest.raises(UserError, match="ids from 11 to 11"):
        net.generate(Request(labels(), GRID, prefix=torch.full_like(prefix, 11)))


def test_patches_must_tile_the_grid_and_are_put_back() -> None:
    with pytest.raises(UserError, match="Patches of 3x3 do not tile"):
        model("continuous", patch=3)
    net, tokens = model("continuous", patch=2), some_tokens("continuous")
    sequence = to_sequence(tokens, net.spec, 2)
    assert sequence.shape == (2, NUM // 4, 16)
    assert torch.equal(from_sequence(sequence, net.spec, 2, GRID), tokens)
    options = DiffusionSampling(diffusion_steps=2)
    drawn = net.generate(Request(labels(), GRID, prefix=tokens[:, :1], options=options))
    assert drawn.shape == tokens.shape


@pytest.mark.parametrize("token_type", SPECS)
@pytest.mark.parametrize("encoder_share", [0.0, 0.5])
def test_without_conditions_a_start_token_stands_for_them(
    token_type: TokenType, encoder_share: float
) -> None:
    net = Masked(SPECS[token_type], GRID, ContextSpec(), SIZE, encoder_share=encoder_share).train()
    for _ in range(8):
        net.loss(some_tokens(token_type), Condition())["loss"].backward()
    assert net.start is not None
    assert net.start.grad is not None
    assert net.start.grad.any()
    options = net.options_for(token_type)(guidance=2.0)
    assert net.eval().generate(Request(Condition(), GRID, options=options)).shape[0] == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_options_train(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    token_type = PUBLISHED[name]
    assert config["token_type"] == token_type
    given = (SPECS[token_type], GRID, ContextSpec(conditions={"label": 3}), SIZE)
    given = dict(zip(("spec", "grid", "context", "size"), given, strict=True))
    net = instantiate(Masked, config["paradigm"]["init_args"], what=name, given=given).train()
    loss = net.loss(some_tokens(token_type), labels())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert math.isclose(net.network.layers.blocks[0].dropout.p, 0.1)
