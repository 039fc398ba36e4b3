"""The colours of a heatmap tell ordinary steps apart, whatever one step or another run does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report.scales import DECADES, scales


def grid(*columns: list[float]) -> list[list[float]]:
    """Columns of training steps as rows of timesteps."""
    return [list(row) for row in zip(*columns, strict=True)]


VANISHING = grid(*[[10.0 ** (-t / 2 - step / 10) for t in range(40)] for step in range(8)])
ONCE_EXPLODED = grid([10.0 ** (t / 2) for t in range(40)], *[[0.1 + t / 100 for t in range(40)]] * 6)
HEALTHY = grid(*[[0.01 * (1 + t / 40) for t in range(40)]] * 5)
EXPLODING = grid(*[[10.0 ** (20 - t / 2) for t in range(40)]] * 30)
LOST = grid([math.inf] * 40, [math.nan] * 40)


@pytest.mark.parametrize("spoilt", [1e6, 1e22, 1e300])
def test_one_step_that_explodes_leaves_the_others_their_colours(spoilt):
    """The brightest colour is a hundredfold of an ordinary step's largest value, and what is higher is said."""
    rows = grid(*[[0.01, 0.05, 0.1]] * 4, [spoilt, 1.0, 0.1])
    (scale,) = scales([rows])
    assert scale.high == pytest.approx(math.log10(0.1) + 2)
    assert scale.low == pytest.approx(-2)
    assert scale.notes(rows) == [f"the colours end at 10: what lies higher, up to {spoilt:.2g}, is as bright"]


@pytest.mark.parametrize("other", [ONCE_EXPLODED, EXPLODING, LOST], ids=["once", "always", "lost"])
def test_a_run_that_explodes_leaves_the_runs_beside_it_their_colours(other):
    """What vanishes and what is healthy has colours within the scale that they share."""
    vanishing, healthy, _ = scales([VANISHING, HEALTHY, other])
    assert vanishing == healthy
    assert not vanishing.alone
    for rows, scale in ((VANISHING, vanishing), (HEALTHY, healthy)):
        tops = [max(column) for column in zip(*rows, strict=True)]
        assert all(scale.low + 1 < math.log10(top) <= scale.high for top in tops)


def test_a_run_far_over_the_others_has_a_scale_of_its_own_and_says_so():
    """Its own values lie within it, down to as many decades as colours can tell apart."""
    _, own = scales([HEALTHY, EXPLODING])
    assert own.alone
    assert own.high == pytest.approx(20)
    assert own.notes(EXPLODING)[0] == "this run has a scale of its own"
    assert scales([EXPLODING])[0].alone is False


@pytest.mark.parametrize("rows", [[], LOST, grid([0.0, 0.0], [0.0, 0.0])], ids=["none", "lost", "zeros"])
def test_nothing_to_colour_is_no_error(rows):
    """A grid without a positive value has a scale that says nothing."""
    (scale,) = scales([rows])
    assert scale.low < scale.high
    assert scale.notes(rows) == []


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), min_size=3, max_size=3), max_size=6))
def test_any_grid_has_a_scale_of_one_to_twelve_decades(columns):
    """Its limits are finite, positive floats, at most twelve decades apart."""
    (scale,) = scales([grid(*columns)])
    low, high = scale.limits
    assert 0 < low < high < math.inf
    assert scale.high - scale.low <= DECADES + 1e-9
