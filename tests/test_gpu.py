"""What only a GPU has: FlexAttention's masks, captured and compiled steps, bf16 weights. Skipped without one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenSpec,
)
from arvid.nn import attend
from arvid.nn.cuda_graph import without_graphs
from arvid.nn.heads.categorical import CategoricalSampling, candidates
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.nn.heads.threshold import kept_ids
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.nova import NOVA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GRID = TokenGrid(3, 8, 8)
CONTEXT = ContextSpec(text_dim=8, text_len=5)
SIZE = Size(dim=128, depth=2, num_heads=2, head_dim=32, head_depth=1)
IDS, LATENTS = (TokenSpec(kind, 70, (4, 8, 8), True) for kind in ("discrete", "continuous"))


def condition(batch: int = 2) -> Condition:
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    text = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    return Condition(text=text[:batch], text_mask=mask[:batch]).to("cuda")


def model(**options: object) -> NextBlock:
    torch.manual_seed(0)
    net = NextBlock(IDS, GRID, CONTEXT, SIZE, dropout=0.0, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.cuda().eval()


def test_blocks_train_as_with_a_dense_mask_also_after_a_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = torch.randint(70, (2, 3, 8, 8), device="cuda")
    net, losses, gradients = model(block=(1, 2, 4)), [], []
    for flex in (True, False):
        monkeypatch.setattr(attend, "_has_triton", lambda flex=flex: flex)
        net._mask = None
        with torch.inference_mode():
            net.loss(tokens, condition())
        net.zero_grad()
        loss = net.loss(tokens, condition())["loss"]
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 1, 8), (1, 8, 8)])
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_steps_draw_what_steps_without_a_cache_do(
    block: tuple[int, int, int], compiled: bool
) -> None:
    net = model(block=block)
    plain = CategoricalSampling(temperature=0.0, guidance=2.0, use_cache=False)
    captured = NextBlock.options_for("discrete")().replace(
        temperature=0.0, guidance=2.0, compiled=compiled
    )
    for given in (condition(), condition(1), condition()):
        drawn = net.generate(Request(given, GRID, options=captured))
        assert (
            drawn == net.generate(Request(given, GRID, options=plain))
        ).float().mean() > 0.98  # ties


def test_captured_steps_split_the_keys() -> None:
    """They run flash attention's kernel for few queries and many keys, also with a padded prompt."""
    net = model(block=(1, 1, 8)).to(torch.bfloat16)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        net.generate(Request(condition(), GRID, options=CategoricalSampling(temperature=0.0)))
    assert any("splitkv" in event.key for event in found.key_averages())


def test_logits_that_are_not_finite_are_noted_while_drawing_goes_on() -> None:
    net = model(block=(1, 1, 8))
    weight = net.head.logits.weight.detach().clone()
    for options in (
        SamplingOptions(),
        CategoricalSampling(top_k=5),
        CategoricalSampling(temperature=0.0),
    ):
        net.head.logits.weight.data.fill_(torch.nan)
        ids = net.generate(Request(condition(), GRID, options=options))
        assert 0 <= ids.min() <= ids.max() < 70
        assert net.head.take_fault()
        net.head.logits.weight.data.copy_(weight)
        net.generate(Request(condition(), GRID, options=options))
        assert not net.head.take_fault()


def test_nova_computes_on_a_gpu_what_it_does_on_a_cpu() -> None:
    torch.manual_seed(0)
    on_cpu = NOVA(LATENTS, GRID, CONTEXT, SIZE, num_sets=4).eval()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    tokens = torch.randn(2, 3, 8, 8, 70)
    outs = [
        net.temporal(net.context(given, 2)[None], frames[:, :-1], 3).cpu()
        for net, given, frames in (
            (on_cpu, condition().to("cpu"), tokens),
            (on_gpu, condition(), tokens.cuda()),
        )
    ]
    torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", [IDS, LATENTS], ids=["ids", "latents"])
def test_nova_draws_with_graphs_what_it_does_without(spec: TokenSpec) -> None:
    torch.manual_seed(0)
    net = NOVA(spec, GRID, CONTEXT, SIZE, num_sets=4).cuda().eval()
    options = NOVA.options_for(spec.type)(guidance=3.0).replace(
        **{"diffusion_steps": 4} if spec is LATENTS else {"top_k": 5}
    )

    def drawn() -> torch.Tensor:
        generator = torch.Generator("cuda").manual_seed(1)
        return net.generate(Request(condition(), GRID, options=options, generator=generator))

    with without_graphs():
        plain = drawn()
    for _ in range(2):  # captures, then replays
        assert (drawn() - plain).abs().float().mean() < 1e-3 * plain.abs().float().mean()


def test_thresholds_keep_on_a_gpu_what_sorting_keeps() -> None:
    logits = torch.randn(4, 64_000, generator=torch.Generator().manual_seed(0))
    kept, _ = kept_ids(logits.cuda(), top_k=16_000, top_p=0.9)
    num_kept = candidates(logits, 16_000, 0.9).num_kept
    assert (kept.sum(-1).cpu() - num_kept).abs().max() <= 1  # the softmax rounds in another way


def test_nova_in_bf16_draws_clips_on_a_gpu() -> None:
    net = NOVA(LATENTS, GRID, CONTEXT, SIZE, num_sets=4).cuda().to(torch.bfloat16).eval()
    options = DiffusionSampling(guidance=3.0, diffusion_steps=4)
    clips = net.generate(Request(condition(), GRID, options=options))
    assert clips.shape == (2, 3, 8, 8, 70)
    assert clips.isfinite().all()
