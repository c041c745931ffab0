"""Counts a model's budget: parameters, FLOPs (torch's counter), network evaluations, tokens seen, training time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from arvid.contracts import Request
from arvid.evaluation.records import Budget
from arvid.flops import flop_counter
from arvid.nn.cuda_graph import without_graphs
from arvid.sampling.sample import Conditions, clip_grid
from arvid.training.generator_module import GeneratorModule


def count_budget(
    model: GeneratorModule,
    conditions: Conditions,
    *,
    num_frames: int | None = None,
    prefix_frames: int,
) -> Budget:
    """Training and generation costs of a model, without `frames_per_second`, which the harness measures.

    Args:
        model: the generator.
        conditions: of one clip.
        num_frames: length of the generated clip. Default: the length in training.
        prefix_frames: number of given latent frames.
    """
    grid = clip_grid(model, num_frames)
    trained = model.trained
    return Budget(
        parameters=count_parameters(model),
        parameters_without_embeddings=count_parameters(model, embeddings=False),
        flops_per_training_clip=training_flops(model, conditions),
        flops_per_generated_clip=generation_flops(
            model, conditions, num_frames=num_frames, prefix_frames=prefix_frames
        ),
        evaluations=model.paradigm.num_evaluations(
            grid, prefix_frames=prefix_frames, options=model.sampling
        ),
        training_seconds=trained.seconds if trained else None,
        training_steps=trained.steps if trained else None,
        tokens_seen=trained.clips * clip_grid(model).num_tokens if trained else None,
    )


def count_parameters(model: GeneratorModule, *, embeddings: bool = True) -> int:
    """Number of parameters of conditioner and paradigm, without the tokenizer.

    Without `embeddings`, embedding tables (tokens, labels, words, positions) and the output layer are not counted.
    """
    parts = nn.ModuleList([model.conditioner, model.paradigm])
    total = sum(p.numel() for p in parts.parameters())
    if embeddings:
        return total
    tables = [m.weight for m in parts.modules() if isinstance(m, nn.Embedding)]
    named = [p for n, p in parts.named_parameters() if n.endswith(_TABLES)]
    return total - sum(p.numel() for p in (*tables, *named))


_TABLES = ("position", "positions", "logits.weight")


def training_flops(model: GeneratorModule, conditions: Conditions) -> float:
    """FLOPs of the forward and backward pass of one clip."""
    tokens = _any_tokens(model)
    with (
        torch.random.fork_rng(),
        torch.enable_grad(),
        _gradients(model, True),
        flop_counter() as counter,
    ):
        torch.manual_seed(0)  # the number of masked tokens may be random
        condition = conditions.encode(model)
        model.paradigm.loss(tokens, condition)["loss"].backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def generation_flops(
    model: GeneratorModule,
    conditions: Conditions,
    *,
    num_frames: int | None = None,
    prefix_frames: int = 0,
) -> float:
    """FLOPs of the generation of one clip, decoding included."""
    grid = clip_grid(model, num_frames)
    prefix = _any_tokens(model, num_frames)[:, :prefix_frames] if prefix_frames else None
    # A replayed graph would hide its FLOPs from the counter, and a capture would count them several times.
    with torch.no_grad(), without_graphs(), _gradients(model, False), flop_counter() as counter:
        condition = conditions.encode(model, num_frames)
        request = Request(condition, grid, prefix=prefix, options=model.sampling)
        model.tokenizer.decode(model.paradigm.generate(request))
    return float(counter.get_total_flops())


def _any_tokens(model: GeneratorModule, num_frames: int | None = None) -> Tensor:
    frames, height, width = model.clip_shape
    video = torch.zeros(1, 3, num_frames or frames, height, width, device=model.device)
    with torch.no_grad():
        return model.tokenizer.encode(video)


@contextmanager
def _gradients(model: GeneratorModule, wanted: bool) -> Iterator[None]:
    """Set `requires_grad` of conditioner and paradigm inside the block: True as in training, False as in sampling.

    (The FLOP counter fails on slices of parameters that require gradients, even under `no_grad`.)
    """
    parts = nn.ModuleList([model.conditioner, model.paradigm])
    before = [(p, p.requires_grad) for p in parts.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(wanted and parameter.numel() > 0)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
