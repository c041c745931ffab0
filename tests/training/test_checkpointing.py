"""Activation checkpointing: the same losses and gradients as without, for every paradigm and token type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from arvid import registry
from arvid.contracts import Condition, UserError
from arvid.nn import draws
from arvid.nn.attention import Transformer
from arvid.nn.checkpointing import CHECKPOINTINGS, Checkpointing
from arvid.nn.draws import Part, SharedStream
from arvid.planning.step import SavedTensors
from arvid.training.generator_module import GeneratorModule, build_generator

BATCH = 2
RUNS = [
    (name, token_type, checkpoint)
    for name in registry.names("paradigms")
    for token_type in ("continuous", "discrete")
    for checkpoint in CHECKPOINTINGS[1:]
]


def model_of(name: str, token_type: str, checkpoint: str | None = None) -> GeneratorModule:
    """A small model with dropout, where the paradigm has it: random numbers must be drawn again alike."""
    options: dict[str, Any] = {} if name == "frame_diffusion" else {"dropout": 0.1}
    if name == "next_block":
        options["block"] = [1, 1, 8]
    config = {
        "paradigm": {"class_path": name, "init_args": options},
        "token_type": token_type,
        "tokenizers": {"continuous": "sprites-vae3d", "discrete": "sprites-magvit_fsq"},
        "size": {"dim": 32, "depth": 3, "num_heads": 2, "head_dim": 32, "head_depth": 1},
        "clip_shape": [9, 32, 32],
        **({} if checkpoint is None else {"checkpoint": checkpoint}),
    }
    torch.manual_seed(0)
    return build_generator(config).train()


def step(model: GeneratorModule) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and bytes that are saved for the backward pass."""
    spec = model.tokenizer.spec
    grid = spec.grid(*model.clip_shape)
    size = (BATCH, grid.t, grid.h, grid.w)
    torch.manual_seed(1)
    tokens = torch.randint(100, size) if spec.type == "discrete" else torch.randn(*size, spec.size)
    saved = SavedTensors(model.parameters())
    with saved.recording():
        loss = model.paradigm.loss(tokens, Condition())["loss"]
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, saved.num_bytes


@pytest.mark.parametrize(("name", "token_type", "checkpoint"), RUNS)
def test_losses_and_gradients_are_those_without(
    name: str, token_type: str, checkpoint: Checkpointing
) -> None:
    loss, gradients, saved = step(model_of(name, token_type, "none"))
    again, others, less = step(model_of(name, token_type, checkpoint))
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    assert others.keys() == gradients.keys()
    scale = max(g.abs().max().item() for g in gradients.values())
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(others[parameter], gradient, rtol=0, atol=1e-6 * scale)
    assert less < saved


def test_blocks_again_are_bitwise_equal() -> None:
    _, gradients, _ = step(model_of("next_token", "discrete", "none"))
    _, others, _ = step(model_of("next_token", "discrete", "blocks"))
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())


def test_numbers_of_a_divided_batch_are_drawn_again_alike() -> None:
    found = []
    for checkpoint in ("none", "blocks"):
        model = model_of("next_token", "discrete", checkpoint)
        torch.manual_seed(2)
        draws.share(SharedStream(torch.device("cpu")), Part(0, BATCH, 2 * BATCH))
        try:
            found.append((step(model), torch.rand(())))
        finally:
            draws.share(None)
    (first, after), (second, after_again) = found
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(second[1][name], gradient) for name, gradient in first[1].items())
    assert torch.equal(after, after_again)


def test_weights_have_the_same_names() -> None:
    plain, checkpointed = (model_of("nova", "continuous", c) for c in (None, "blocks_and_head"))
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    plain.load_state_dict(checkpointed.state_dict())


def test_only_what_is_asked_for_is_computed_again() -> None:
    flags = {}
    for checkpoint in (None, *CHECKPOINTINGS):
        model = model_of("nova", "continuous", checkpoint)
        stacks = [m for m in model.paradigm.modules() if isinstance(m, Transformer)]
        assert len(stacks) > 1
        blocks = {stack.gradient_checkpointing for stack in stacks}
        flags[checkpoint] = blocks, model.paradigm.head.gradient_checkpointing
    assert flags == {
        None: ({False}, False),
        "none": ({False}, False),
        "blocks": ({True}, False),
        "blocks_and_head": ({True}, True),
    }


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(UserError, match="checkpoint"):
        model_of("nova", "continuous", "everything")
