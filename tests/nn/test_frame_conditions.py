"""Conditions per frame: the latent frame of each value, and the null vector of unknown values."""

from __future__ import annotations

import pytest
import torch

from arvid.contracts import Condition, ContextSpec, TokenSpec, UserError
from arvid.nn.conditioner import Conditioner
from arvid.nn.frame_conditions import FrameEmbedder, group_frames

CAUSAL = TokenSpec("discrete", 7, (4, 8, 8), True)
CHUNKS = TokenSpec("discrete", 7, (4, 8, 8), False)
NAN = float("nan")


def embedder(**sizes: int) -> FrameEmbedder:
    torch.manual_seed(0)
    return FrameEmbedder(ContextSpec(frame_conditions=sizes, frames_per_latent=4), 16)


def actions(*rows: list[int]) -> Condition:
    """Actions (1, t, 4)."""
    return Condition(values={"actions": torch.tensor([rows])})


def test_the_first_latent_frame_of_a_causal_tokenizer_has_one_frame() -> None:
    ids = torch.arange(9)[None]
    grouped = group_frames(ids, CAUSAL, -1)
    assert grouped[0].tolist() == [[-1, -1, -1, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert CAUSAL.grid(9, 8, 8).t == grouped.shape[1]
    assert group_frames(ids[:, :8], CHUNKS, -1)[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_vectors_are_grouped_along_time_alone() -> None:
    vectors = torch.randn(2, 5, 3)
    grouped = group_frames(vectors, CAUSAL, NAN)
    assert grouped.shape == (2, 2, 4, 3)
    assert grouped[:, 0, :3].isnan().all()
    assert torch.equal(grouped[:, 1], vectors[:, 1:])


def test_the_order_of_the_actions_of_a_latent_frame_counts() -> None:
    embed = embedder(actions=5)
    one, other, again = (
        embed(actions(row), 1, 1) for row in ([1, 1, 2, 2], [2, 2, 1, 1], [1, 1, 2, 2])
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_unknown_actions_count_nothing_and_none_known_is_null() -> None:
    embed = embedder(actions=5)
    found = embed(actions([-1, -1, -1, 3], [-1, -1, -1, -1]), 1, 2)
    row = embed.get_submodule("actions").table.weight[3 * 5 + 3]
    torch.testing.assert_close(found[0, 0], row)
    assert torch.equal(found[0, 1], embed.null[0])
    assert torch.equal(embed(Condition(), 3, 2), embed.null.expand(3, 2, -1))


def test_dropping_gives_the_null_vector_in_all_frames() -> None:
    embed = embedder(actions=5)
    given = Condition(values={"actions": torch.ones(2, 3, 4, dtype=torch.long)})
    found = embed(given, 2, 3, torch.tensor([True, False]))
    assert torch.equal(found[0], embed.null.expand(3, -1))
    assert not torch.equal(found[1], embed.null.expand(3, -1))


def test_several_conditions_are_added_up_and_unknown_numbers_are_zero() -> None:
    both = embedder(actions=5, action_vectors=2)
    vectors = torch.tensor([[[[NAN, NAN]] * 3 + [[0.5, -1.0]]]])  # (1, 1, 4, 2)
    given = Condition(values={**actions([0, 1, 2, 3]).values, "action_vectors": vectors})
    linear = both.get_submodule("action_vectors").project
    expected = linear(torch.tensor([0.0] * 6 + [0.5, -1.0]))
    only = both(actions([0, 1, 2, 3]), 1, 1) - both.null[1]
    torch.testing.assert_close(both(given, 1, 1), only + expected)


def test_without_conditions_per_frame_there_is_nothing() -> None:
    embed = embedder()
    assert embed(Condition(), 2, 3) is None
    assert not embed.state_dict()


def test_the_conditioner_groups_them_and_refuses_unknown_ones() -> None:
    conditioner = Conditioner(sizes={"motion": 1, "actions": 5}, tokens=CAUSAL)
    assert conditioner.spec == ContextSpec(
        conditions={"motion": 1}, frame_conditions={"actions": 5}, frames_per_latent=4
    )
    given = conditioner(values={"actions": torch.zeros(2, 9, dtype=torch.long)})
    assert given.values["actions"].shape == (2, 3, 4)
    with pytest.raises(UserError, match="Action 5 is unknown: this model knows actions 0 to 4"):
        conditioner(values={"actions": torch.full((1, 9), 5)})
    with pytest.raises(UserError, match="no values of actions"):
        conditioner.from_batch({"caption": [""], "motion": torch.zeros(1)})
