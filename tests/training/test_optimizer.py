"""The optimizer: which weights get what, schedules, and Muon beside AdamW as one optimizer that resumes exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Muon

from arvid.contracts import ContextSpec, Size, TokenGrid, TokenSpec, UserError
from arvid.paradigms.nova import NOVA
from arvid.training.muon import BatchedMuon, MuonAdamW, orthogonal, stacked_matrices
from arvid.training.optimizer import OptimizerConfig, build_optimizer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in "ab")
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.head(x)
        return out


def train(network: Network, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, 3, generator=generator)
        loss = (network(x) - x[:, :2].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def network() -> Network:
    torch.manual_seed(0)
    return Network()


MUON = OptimizerConfig(lr=0.01, warmup_steps=2, muon=True)


def test_muon_gets_the_matrices_of_blocks_and_adamw_all_else() -> None:
    net = network()
    optimizer = build_optimizer(net, MUON, max_steps=10)["optimizer"]
    assert isinstance(optimizer, MuonAdamW)
    muon, adamw = optimizer.parts
    weights = [block[0].weight for block in net.blocks]
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(p) for p in weights]
    rest = [p for group in adamw.param_groups for p in group["params"]]
    assert {id(p) for p in rest} == {id(p) for p in net.parameters()} - {id(p) for p in weights}


def test_a_stack_in_a_stack_counts_once_and_frozen_weights_do_not() -> None:
    net = nn.ModuleList([network(), network()])
    for p in net[1].parameters():
        p.requires_grad_(False)
    assert (
        len(stacked_matrices(net, heads=True)) == 4
    )  # embed, two blocks and head of the network that learns


def test_one_schedule_moves_both_learning_rates() -> None:
    built = build_optimizer(network(), MUON, max_steps=10)
    rates = {group["lr"] for part in built["optimizer"].parts for group in part.param_groups}
    assert rates == {MUON.lr * MUON.factor(0, 10)}
    built["optimizer"].step()
    built["lr_scheduler"]["scheduler"].step()
    rates = {group["lr"] for part in built["optimizer"].parts for group in part.param_groups}
    assert rates == {MUON.lr * MUON.factor(1, 10)}


def test_muons_update_is_orthogonal_and_as_large_as_adamws() -> None:
    net = network()
    weight = net.blocks[0][0].weight
    before = weight.detach().clone()
    config = OptimizerConfig(lr=0.01, warmup_steps=0, muon=True, weight_decay=0.0)
    train(net, build_optimizer(net, config, max_steps=100)["optimizer"], range(1))
    step = weight.detach() - before
    rank = 3  # of the gradient: three inputs
    assert step.square().mean().sqrt() == pytest.approx(0.2 * 0.01 * (rank / 8) ** 0.5, rel=0.2)
    singular = torch.linalg.svdvals(step)[:rank]
    assert singular.max() / singular.min() < 2


def test_resumed_training_equals_training_straight_through() -> None:
    straight = network()
    whole = train(straight, build_optimizer(straight, MUON, 20)["optimizer"], range(10))
    net = network()
    optimizer = build_optimizer(net, MUON, 20)["optimizer"]
    first = train(net, optimizer, range(5))
    resumed = Network()
    resumed.load_state_dict(net.state_dict())
    other = build_optimizer(resumed, MUON, 20)["optimizer"]
    other.load_state_dict(optimizer.state_dict())
    assert first + train(resumed, other, range(5, 10)) == whole


def test_muon_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Muon trains the linear maps in a network's blocks"):
        build_optimizer(nn.Linear(2, 2), MUON, max_steps=10)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
def test_stacked_matrices_are_made_orthogonal_as_torchs_muon_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    group = Muon([nn.Parameter(torch.zeros(shape))]).param_groups[0]
    found = orthogonal(matrices, group)
    a, b, c = group["ns_coefficients"]
    for matrix, ours in zip(matrices.double(), found, strict=True):
        x = matrix / matrix.norm()
        for _ in range(group["ns_steps"]):  # the textbook's form, in float64
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        # 30 products of sums of at most 16, each an error of some eps, and slopes of up to 3.4 a step
        torch.testing.assert_close(ours.double(), x, rtol=0, atol=1e-4)
    assert found.dtype == torch.float32


def test_a_checkpoint_of_torchs_muon_goes_on() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(4, 8))
    before, gradient = matrix.detach().clone(), torch.randn(4, 8)
    theirs = Muon([matrix], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    matrix.grad = gradient
    theirs.step()
    state = theirs.state_dict()
    theirs.step()
    expected = matrix.detach() - before
    again = nn.Parameter(before.clone())
    ours = BatchedMuon([again], lr=0.01, weight_decay=0.0)
    again.grad = gradient
    ours.step()
    ours.load_state_dict(state)
    ours.step()
    error = (again.detach() - before - expected).norm() / expected.norm()
    assert error < 30 * 2**-8  # torch's products are in bfloat16


def test_muon_may_leave_token_heads_to_adamw() -> None:
    spec, context = TokenSpec("continuous", 4, (4, 4, 4), True), ContextSpec()
    size = Size(dim=16, depth=2, num_heads=2, head_dim=16, head_depth=2)
    paradigm = NOVA(spec, TokenGrid(2, 4, 4), context, size)
    every = stacked_matrices(paradigm, heads=True)
    some = stacked_matrices(paradigm, heads=False)
    in_head = {id(p) for p in paradigm.head.parameters()}
    assert {id(p) for p in every} - {id(p) for p in some} == {id(p) for p in every} & in_head
    assert len(every) > len(some) > 0
