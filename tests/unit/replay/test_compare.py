"""Two events are the same, or it is said how they differ."""

from __future__ import annotations

import math

import pytest

from lightning_gradwatch.events import EventKind, Moment
from lightning_gradwatch.replay.compare import differences

EVENT = (
    Moment(3, 0, 3)
    .event(EventKind.NONFINITE_STATE, module="rnn", layer=1, state="h", timestep=4, sequence=2, value=math.nan)
    .to_record()
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"step": 9, "rank": 1, "message": "other words", "severity": "info"}, []),
        ({"timestep": 5}, ["timestep was 4, now 5"]),
        ({"layer": None}, ["layer was 1, now none"]),
        ({"value": math.inf}, ["value was nan, now inf"]),
        ({"kind": EventKind.NONFINITE_INPUT, "value": None}, ["kind was", "value was nan, now none"]),
    ],
)
def test_kind_place_and_value_count(change, said):
    """The time, the rank and the words don't."""
    found = differences(EVENT, {**EVENT, **change})
    assert len(found) == len(said)
    assert all(words in one for one, words in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1.0, 1.0005, True),
        (1.0, 1.1, False),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (None, None, True),
    ],
)
def test_values_may_differ_by_a_rounding(one, other, same):
    """Another device sums in another order; signs of infinity count."""
    assert (differences({**EVENT, "value": one}, {**EVENT, "value": other}) == []) == same
