"""Which parameter's gradient is said to have grown most."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradwatch.engine.locator import Locator, Read
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.measure.gradient_norm import Norms

RNN = nn.RNN(2, 3)
LOCATOR = Locator(nn.ModuleDict({"rnn": RNN}), Capture({"rnn": RNN}))
SAID = re.compile(r"That of rnn\.(\w+) grew most: to (\S+) from (\S+) (?:at the step|(\d+) steps) before\.")


def read(*norms: float) -> Read:
    return Read(list(RNN.parameters())[: len(norms)], Norms(list(norms), len(norms), None))


def test_it_is_named_with_its_norms() -> None:
    """Of those that make up the norm, and not one that is small beside it."""
    said = LOCATOR.grown_most(read(9.0, 6.0, 0.5), [read(3.0, 1.0, 0.001)], recurrent=True)
    assert said == "That of rnn.weight_hh_l0 grew most: to 6 from 1 at the step before."


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([(1.0,), (50.0,)], "to 8 from 1 2 steps before."),
        ([(1.0,), (2.0,), (50.0,), (9.0,)], "to 8 from 2 3 steps before."),
        ([(50.0,), (9.0,)], ""),
        ([], ""),
    ],
)
def test_a_step_before_with_a_larger_norm_is_passed_over(before: list[tuple[float, ...]], said: str) -> None:
    """Nothing has grown since then; where that is so of all of them, nothing is said."""
    found = LOCATOR.grown_most(read(8.0), [read(*norms) for norms in before], recurrent=False)
    assert found.endswith(said)
    assert bool(found) == bool(said)


@given(st.lists(st.tuples(*3 * [st.floats(1e-3, 1e3)]), min_size=2, max_size=6))
def test_what_is_said_to_have_grown_has(norms: list[tuple[float, float, float]]) -> None:
    """Whatever came before: between the two steps that the sentence names."""
    *before, now = norms
    said = LOCATOR.grown_most(read(*now), [read(*one) for one in before], recurrent=True)
    found = SAID.fullmatch(said)
    assert (found is None) == (said == "")
    if found:
        at = [name for name, _ in RNN.named_parameters()].index(found[1])
        assert now[at] > before[-int(found[4] or 1)][at]
