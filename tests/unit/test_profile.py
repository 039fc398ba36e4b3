"""Horizon, growth rate and thinning, from curves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_gradwatch.profile import gradient_horizon, growth_rate, nan_median
from lightning_gradwatch.thinning import evenly, logarithmically
from lightning_gradwatch.thresholds import FLOOR, MAX_POINTS
from tests.profiles import profile

NORMS = st.sampled_from([0.0, 5e-324, 1e-30, 0.3, 1.0, 7.0, 1e300, 8e307, math.inf, math.nan]) | st.floats(0, 1e9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a column of NaN, and a sum of the largest numbers
@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=NORMS))
def test_the_median_is_numpys(rows: np.ndarray) -> None:
    """To the bit, whatever is NaN or infinite."""
    assert np.array_equal(nan_median(rows), np.nanmedian(rows, axis=0), equal_nan=True)


@given(st.floats(-0.5, 0.5), st.integers(2, 200))
def test_the_growth_rate_of_an_exponential_is_its_exponent(rate: float, count: int) -> None:
    """exp(rate·k) has the growth rate ``rate``, as far as it is told apart from underflow."""
    assert growth_rate(np.exp(rate * np.arange(count))) == pytest.approx(rate, abs=1e-9)


@given(st.integers(1, 60))
def test_a_curve_that_underflows_is_judged_by_what_is_left(count: int) -> None:
    """Zeros and what lies behind them do not enter the growth rate."""
    curve = np.concatenate([np.exp(-0.3 * np.arange(count + 1)), np.zeros(20), [1e-3]])
    assert growth_rate(curve) == pytest.approx(-0.3)
    assert growth_rate(np.array([1.0, FLOOR / 2])) is None


@pytest.mark.parametrize(
    ("curve", "lag", "censored"),
    [
        ([1.0], 0, True),
        ([1.0, 0.5, 0.01], 2, True),
        ([1.0, 0.5, 0.0099, 0.5], 2, False),
        ([1.0, 0.0], 1, False),
        ([], None, True),
        ([1.0, math.inf, math.inf], None, True),
        ([1.0, 0.001, math.inf], 1, False),
    ],
)
def test_the_horizon_is_the_first_lag_under_one_percent(curve, lag, censored) -> None:
    """It is censored where the curve never falls, and missing where there is no curve or one that is not finite."""
    horizon = gradient_horizon(np.array(curve))
    assert (horizon.lag, horizon.censored) == (lag, censored)


def test_sequences_that_end_early_are_left_out_of_the_median() -> None:
    """Past a sequence's end it does not count, while a NaN within it counts as larger than anything."""
    nan = math.nan
    found = profile([[1.0, 2.0, nan], [3.0, nan, 5.0], [5.0, 4.0, 7.0]], [2, 3, 3])
    assert found.total_median().tolist() == [3.0, 4.0, 6.0]
    assert found.total_max().tolist() == [5.0, math.inf, 7.0]


def test_an_even_number_of_sequences_has_the_mean_of_the_middle_two() -> None:
    """The median over two sequences is their mean."""
    assert profile([[1.0], [2.0]]).total_median().tolist() == [1.5]


def test_a_loop_has_no_direct_part() -> None:
    """Where direct and total cannot be told apart, the record says null."""
    assert profile([[1.0]]).to_record()["direct"] is None
    assert profile([[1.0]], direct=[[0.5]]).scaled(2.0).to_record()["direct"] == [1.0]


def test_long_lists_are_thinned_but_judged_whole() -> None:
    """5,000 timesteps leave 1,024 points with their places; horizon and growth rate come from all of them."""
    steps = 5000
    curve = np.exp(-0.001 * np.arange(steps))
    record = profile([np.arange(steps)], curves=[curve]).to_record(keep_sequences=True)
    assert len(record["total"]) == len(record["at"]) == MAX_POINTS
    assert record["total"] == [float(t) for t in record["at"]]
    assert len(record["lagged"]) == len(record["lag_at"]) <= MAX_POINTS
    assert (record["at"][0], record["at"][-1]) == (0, steps - 1)
    assert (record["lag_at"][:3], record["lag_at"][-1]) == ([0, 1, 2], steps - 1)
    assert record["horizon"] == math.ceil(math.log(100) / 0.001)
    assert record["growth_rate"] == pytest.approx(-0.001)
    assert len(record["total_by_sequence"][0]) == steps


@given(st.integers(0, 20_000))
def test_thinning_keeps_the_ends_in_order(count: int) -> None:
    """What is kept is ascending, without repetition, first and last included."""
    for kept in (evenly(count), logarithmically(count)):
        if count <= MAX_POINTS:
            assert kept is None
        else:
            assert kept is not None
            assert (kept[0], kept[-1]) == (0, count - 1)
            assert (np.diff(kept) > 0).all()
