"""What is chosen to be drawn."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report import series
from tests.runlogs import profile


def test_the_grid_is_the_records():
    """Every value stands at its step and timestep; what a shorter sequence lacks is None."""
    records = [profile(0, timesteps=3), profile(7, timesteps=5)]
    grid = series.grid(records)
    assert (grid.steps, grid.timesteps, grid.thinned) == ([0, 7], [0, 1, 2, 3, 4], "")
    assert [row[0] for row in grid.rows] == [*records[0]["total"], None, None]
    assert [row[1] for row in grid.rows] == records[1]["total"]


def test_a_thinned_grid_says_so_and_keeps_real_values():
    """What is shown is what was recorded, and the words tell how much is left out."""
    records = [profile(step, timesteps=50) for step in range(200)]
    grid = series.grid(records, most_steps=20, most_timesteps=10)
    assert (len(grid.steps), len(grid.timesteps)) == (20, 10)
    assert (grid.steps[:2], grid.steps[-1], grid.timesteps) == ([9, 19], 199, list(range(4, 50, 5)))
    assert grid.rows[-1][-1] == records[-1]["total"][-1]
    assert "20 of 200 sampled steps" in grid.thinned
    assert "10 of 50 recorded timesteps" in grid.thinned


def test_recorded_timesteps_are_honoured():
    """A profile that was thinned when it was written is drawn at the timesteps that it names."""
    record = {**profile(timesteps=3), "at": [0, 5000, 9999]}
    assert series.grid([record]).timesteps == [0, 5000, 9999]


def test_one_call_of_a_step_is_drawn_and_said():
    """A module called twice in a step appears once in its column."""
    grid = series.grid([profile(0), {**profile(0, rate=-0.3), "call": 1}])
    assert grid.steps == [0]
    assert "1 of 2 samples" in grid.thinned


@given(count=st.integers(0, 500), most=st.integers(1, 50))
def test_spread_is_even_and_keeps_the_ends(count, most):
    """At most so many, in order, the last always among them."""
    places = series.spread(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    if count:
        assert places[-1] == count - 1
    if count and most > 1:
        assert places[0] == 0
    gaps = [right - left for left, right in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(count=st.integers(0, 500), most=st.integers(1, 50))
def test_strides_are_equal_and_end_at_the_last(count, most):
    """Cells of a heatmap stay equally wide, which is what lets a browser draw them fast."""
    places = list(series.strided(count, most))
    assert len(places) <= most
    assert len({right - left for left, right in pairwise(places)}) <= 1
    assert places[-1:] == ([count - 1] if count else [])
    assert count > most or len(places) == count


def test_select_finds_the_first_that_fits_or_lists_what_there_is():
    """Nothing given takes the first; a wrong name is answered with the right ones."""
    records = [profile(module="b", layer=1), profile(module="b"), profile(module="a", kind="LSTM", state="c")]
    assert series.select(records)[0] == ("b", 0, "forward", "h")
    assert series.select(records, module="a")[0].state == "c"
    with pytest.raises(ValueError, match=r"module='z'.*b, layer 0, h; b, layer 1, h; a, layer 0, c"):
        series.select(records, module="z")


@pytest.mark.parametrize(
    ("horizons", "expected"),
    [
        ([3, 5, 5, 9], ([1, 3, 5, 9, 9], [1.0, 1.0, 0.75, 0.25, 0.0])),
        ([1, 1, 39, 39], ([1, 39], [1.0, 0.5])),  # the last two outlive the 40 timesteps
        ([39], ([1, 39], [1.0, 1.0])),
        (None, ([], [])),
    ],
)
def test_the_reach_of_channels_is_a_share_of_them(horizons, expected):
    """How many hold a gradient for so many timesteps or more; it ends at 0 where none outlives the sequence."""
    record = profile(timesteps=40, channels=horizons)
    assert series.channel_reach(record) == expected
    for place, share in zip(*expected, strict=True):
        assert share in (0.0, sum(reach >= place for reach in horizons) / len(horizons))
