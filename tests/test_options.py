"""Sampling options: each owner's class, and the class of a model, which joins several."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest

from arvid.errors import UserError
from arvid.options import SamplingOptions, compose, help_texts, option, option_names
from arvid.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Blocks(SamplingOptions):
    rounds: int = option(1, at_least(1))
    """Evaluations for each
    block."""


@dataclass(frozen=True, kw_only=True)
class Head(SamplingOptions):
    shift: float | None = option(None, at_least(0))
    noisy: bool = False

    @property
    def guided(self) -> bool:
        return super().guided or self.noisy


Both = compose(Blocks, Head)


def test_an_instance_of_a_composed_class_is_one_of_each_owner() -> None:
    options = Both().replace(rounds=3, guidance=2.0)
    assert isinstance(options, Blocks)
    assert isinstance(options, Head)
    assert options.rounds == 3
    assert option_names(Both) == ["guidance", "use_cache", "shift", "noisy", "rounds"]
    assert copy.deepcopy(options) == options


def test_the_same_owners_give_the_same_class_and_one_alone_its_own() -> None:
    assert compose(Blocks, Head) is Both
    assert compose(Blocks, SamplingOptions) is Blocks
    assert compose(SamplingOptions, SamplingOptions) is SamplingOptions


def test_two_owners_may_not_have_an_option_of_one_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(SamplingOptions):
        shift: int = 0

    with pytest.raises(TypeError, match="Head and Other both have shift"):
        compose(Head, Other)


def test_options_that_lack_some_are_completed_by_defaults() -> None:
    given = Head(shift=2.0, guidance=3.0)
    assert Both.of(given) == Both().replace(shift=2.0, guidance=3.0)
    assert Both.of(SamplingOptions()) == Both()
    whole = Both()
    assert Head.of(whole) is whole


def test_options_that_a_model_does_not_have_are_refused_with_those_that_it_has() -> None:
    message = "no sampling option rounds. It has guidance, use_cache, shift, noisy"
    with pytest.raises(UserError, match=message):
        Head.of(Blocks(rounds=2))
    with pytest.raises(UserError, match=message):
        Head().replace(rounds=2)
    assert Head.of(Blocks()) == Head()  # at its default it asks for nothing


def test_only_what_is_not_at_its_default_is_recorded() -> None:
    assert Both().changed() == {}
    assert Both().replace(rounds=2, guidance=1.0, noisy=True).changed() == {
        "noisy": True,
        "rounds": 2,
    }


def test_ranges_hold_in_composed_classes_and_nothing_is_endless() -> None:
    with pytest.raises(UserError, match="rounds must be at least 1, not 0"):
        Both().replace(rounds=0)
    with pytest.raises(UserError, match="guidance must be a finite number"):
        Both().replace(guidance=float("nan"))


def test_an_owner_may_say_what_needs_an_unconditional_pass() -> None:
    assert not Both().guided
    assert Both().replace(noisy=True).guided
    assert Both().replace(guidance=0.5).guided


def test_help_is_the_docstring_of_each_field() -> None:
    texts = help_texts(Both)
    assert texts["rounds"] == "Evaluations for each block."
    assert texts["guidance"].startswith("Classifier-free guidance scale")
