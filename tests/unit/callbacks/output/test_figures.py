"""Of a long training, a few samples are kept for its figures."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lightning_gradwatch.callbacks.output.figures import _MOST, _Spread


@pytest.mark.parametrize("count", [1, 2, _MOST, _MOST + 1, 1000])
def test_the_samples_kept_are_spread_over_all_of_it(count):
    """The first and the last among them, in equal strides, and never many."""
    spread = _Spread()
    for step in range(count):
        spread.take({"step": step})
    steps = [record["step"] for record in spread.records]
    assert steps[0] == 0
    assert steps[-1] == count - 1
    assert min(count, _MOST // 2) <= len(steps) <= _MOST + 1
    strides = {b - a for a, b in pairwise(steps[:-1])}
    assert len(strides) <= 1
