"""Which entries of a long list a record keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.thresholds import MAX_POINTS


def evenly(count: int) -> npt.NDArray[np.int64] | None:
    """Evenly spaced timesteps, first and last included, to which a longer list is
    thinned; None if it is short enough.
    """
    if count <= MAX_POINTS:
        return None
    return np.linspace(0, count - 1, MAX_POINTS).round().astype(np.int64)


def logarithmically(count: int) -> npt.NDArray[np.int64] | None:
    """Lags to which a longer list is thinned: each of the first ones, then ever
    sparser; None if it is short enough.
    """
    if count <= MAX_POINTS:
        return None
    return np.unique(np.geomspace(1, count, MAX_POINTS).round().astype(np.int64)) - 1
