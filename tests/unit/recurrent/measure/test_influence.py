"""The influence of inputs against autograd, with respect to the inputs of an unrolled model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from tests.cases import Case, cases
from tests.sweeps import measure
from tests.unit.recurrent.measure.influence import check


@settings(max_examples=50, deadline=None)
@given(cases())
def test_influence_agrees_with_autograd(case: Case) -> None:
    """Every kind, layer, direction and layout, to 1e-10."""
    check(case)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_chunks_change_nothing(case: Case) -> None:
    """In chunks of two timesteps it is the same."""
    check(case, chunk=2)


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_kind_packed_and_stacked(mode: str, bidirectional: bool) -> None:
    """Two layers, sequences of different lengths, a loss on everything."""
    check(
        Case(
            mode=mode, loss="everything", bidirectional=bidirectional, num_layers=2, layout="packed", lengths=(3, 7, 5)
        )
    )


def test_the_rest_is_the_same_with_it() -> None:
    """Profiles of the states do not change by a bit."""
    case = Case(num_layers=2, bidirectional=True, loss="everything")
    _, bare, _, _, _ = measure(case)
    _, found, _, _, _ = measure(case, inputs=True)
    for one, other in zip(bare, found, strict=False):
        assert np.array_equal(one.total, other.total, equal_nan=True)
        assert np.array_equal(one.curves, other.curves, equal_nan=True)
    assert [p.state for p in found[len(bare) :]] == ["x", "x"]
