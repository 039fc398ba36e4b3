"""A growth rate in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.growth import growth_in_words, rate_in_words


@pytest.mark.parametrize(
    ("rate", "horizon", "words"),
    [
        (-0.02, 2, "on average it fades, to 98 % with each, but faster over the first lags"),
        (0.03, 4, "on average it grows, by 3 % with each, but it falls over the first lags"),
        (-0.001, 100, "on average it keeps its size, but it falls over the first lags"),
        (-1.0, 40, "on average it fades, to 37 % with each, but slower over the first lags"),
        (-5.0, 9, "on average it fades, to under 1 % with each, but slower over the first lags"),
    ],
)
def test_a_rate_that_is_unlike_the_horizon_is_an_average(rate: float, horizon: int, words: str) -> None:
    """A gradient that falls under 1 % far sooner or later than its rate makes it says where it falls."""
    assert rate_in_words(rate, horizon) == f"growth rate {rate:+.3g} nats per timestep over all lags: {words}"


@given(st.floats(-4.0, -0.01))
def test_an_even_fall_is_said_as_it_is(rate: float) -> None:
    """A curve that falls by one factor at each lag has the horizon that its rate makes."""
    horizon = math.ceil(math.log(0.01) / rate)
    assert rate_in_words(rate, horizon) == f"growth rate {rate:+.3g} nats per timestep: {growth_in_words(rate)}"


@pytest.mark.parametrize("rate", [1e3, 1e308, math.inf])
def test_a_rate_beyond_all_numbers_is_said(rate: float) -> None:
    """As a damaged run log may hold it."""
    assert growth_in_words(rate) == "it grows, beyond every finite number with each"
    assert growth_in_words(-rate) == "it fades, to under 1 % with each"
