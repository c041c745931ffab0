"""Budgets against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from arvid.contracts import Size
from arvid.evaluation.budget import (
    count_budget,
    count_parameters,
    generation_flops,
    training_flops,
)
from arvid.flops import flop_counter
from arvid.nn.attention import Attention
from arvid.nn.text import WordTextEncoder
from arvid.paradigms.next_block import NextBlock
from arvid.sampling.sample import Conditions
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import (
    GeneratorModule,
    Tokenizers,
    load_generator,
)

DIM, DEPTH = 32, 2
VOCABULARY = load_tokenizer("sprites-magvit_fsq").spec.size
GRID = (5, 8, 8)
NUM_TOKENS = 5 * 8 * 8
ALONE = Conditions(num_clips=1)


@pytest.fixture(scope="module")
def model() -> GeneratorModule:
    """Next-row prediction without any condition: easy to count."""

    def paradigm(*given: object) -> NextBlock:
        return NextBlock(*given, block=(1, 1, 8), dropout=0.0)  # type: ignore[arg-type]

    return GeneratorModule(
        paradigm=paradigm,
        tokenizers=Tokenizers(discrete="sprites-magvit_fsq"),
        token_type="discrete",
        size=Size(dim=DIM, depth=DEPTH, num_heads=2),
        clip_shape=(17, 32, 32),
    ).eval()


def linear_flops(positions: int, weights: int) -> int:
    return 2 * positions * weights


def attention_flops(queries: int, keys: int) -> int:
    """Scores and mixing, with all heads together as wide as the model."""
    return 2 * (2 * queries * keys * DIM)


BLOCK_WEIGHTS = 12 * DIM**2  # queries, keys, values and projection 4, the MLP 8
FORWARD = DEPTH * (
    linear_flops(NUM_TOKENS, BLOCK_WEIGHTS) + attention_flops(NUM_TOKENS, NUM_TOKENS)
) + linear_flops(NUM_TOKENS, DIM * VOCABULARY)


def test_attention_is_counted_with_its_scores() -> None:
    x = torch.randn(1, 10, DIM, requires_grad=True)
    with flop_counter() as counter:
        y = Attention(DIM, 2)(x)
    assert counter.get_total_flops() == linear_flops(10, 4 * DIM**2) + attention_flops(10, 10)
    with flop_counter() as counter:
        y.sum().backward()
    backward = 2 * linear_flops(10, 4 * DIM**2) + attention_flops(10, 10) * 5 // 2
    assert counter.get_total_flops() == backward


def test_masked_attention_is_counted_too() -> None:
    x, mask = torch.randn(1, 10, DIM), torch.ones(10, 10, dtype=torch.bool).tril()
    with torch.no_grad(), flop_counter() as counter:
        Attention(DIM, 2)(x, mask)
    assert counter.get_total_flops() == linear_flops(10, 4 * DIM**2) + attention_flops(10, 10)


def test_flops_of_training_against_a_count_by_hand(model: GeneratorModule) -> None:
    attention = DEPTH * attention_flops(NUM_TOKENS, NUM_TOKENS)
    matrices = FORWARD - attention
    expected = 3 * matrices + 3.5 * attention  # forward once; backward twice, attention 2.5 times
    assert training_flops(model, ALONE) == pytest.approx(expected, rel=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_flops_of_generation_against_a_count_by_hand(model: GeneratorModule) -> None:
    steps = range(8, NUM_TOKENS + 1, 8)  # with a cache each row looks at the rows so far and itself
    attention = DEPTH * sum(attention_flops(8, keys) for keys in steps)
    network = FORWARD - DEPTH * attention_flops(NUM_TOKENS, NUM_TOKENS) + attention
    with torch.no_grad(), flop_counter() as counter:
        model.tokenizer.decode(torch.zeros(1, *GRID, dtype=torch.long))
    expected = network + counter.get_total_flops()
    assert generation_flops(model, ALONE) == pytest.approx(expected, rel=1e-3)


def test_given_frames_cost_less(model: GeneratorModule) -> None:
    assert generation_flops(model, ALONE, prefix_frames=4) < generation_flops(model, ALONE)


def test_parameters_with_and_without_embeddings(model: GeneratorModule) -> None:
    norms = (2 * DEPTH + 1) * 2 * DIM
    biases = DEPTH * 9 * DIM
    begin_of_video = DIM
    body = DEPTH * BLOCK_WEIGHTS + norms + biases + begin_of_video
    tables = VOCABULARY * DIM + NUM_TOKENS * DIM + VOCABULARY * DIM  # tokens, positions, logits
    assert count_parameters(model, embeddings=False) == body
    assert count_parameters(model) == body + tables


def test_frozen_parameters_count_and_stay_frozen(model: GeneratorModule) -> None:
    before = count_parameters(model), training_flops(model, ALONE)
    model.requires_grad_(False)
    assert (count_parameters(model), training_flops(model, ALONE)) == before
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)


def test_the_budget_of_a_trained_run(trained_run: Path) -> None:
    trained = load_generator(trained_run)
    conditions = Conditions(num_clips=1, captions=["a red square"])
    budget = count_budget(trained, conditions, prefix_frames=1)
    shorter = count_budget(trained, conditions, num_frames=9, prefix_frames=1)
    assert shorter.evaluations == {"transformer": 16}
    assert shorter.tokens_seen == budget.tokens_seen
    assert shorter.flops_per_generated_clip is not None
    assert budget.flops_per_generated_clip is not None
    assert shorter.flops_per_generated_clip < 0.6 * budget.flops_per_generated_clip
    assert budget.training_steps == 3
    assert budget.tokens_seen == 3 * 4 * NUM_TOKENS
    assert budget.evaluations == {"transformer": 32}  # 4 latent frames of 8 rows
    assert budget.training_seconds is not None
    assert budget.training_seconds > 0
    assert budget.parameters == sum(
        p.numel() for p in nn.ModuleList([trained.conditioner, trained.paradigm]).parameters()
    )
    text, paradigm = trained.conditioner.text, trained.paradigm
    assert isinstance(text, WordTextEncoder)
    tables = [text.table.weight, text.position, paradigm.embed.project.weight]
    tables += [paradigm.places.positions, paradigm.head.logits.weight]
    assert budget.parameters_without_embeddings == budget.parameters - sum(
        table.numel() for table in tables
    )
