"""A window of norms that knows its order statistics."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable


class History:
    """The last ``window`` norms, also in sorted order: adding one costs a bisection, not a sort.

    Args:
        window: how many norms to keep; None keeps all.
        norms: what it holds at first, oldest first.
    """

    def __init__(self, window: int | None = None, norms: Iterable[float] = ()) -> None:
        self._norms: deque[float] = deque()
        self._sorted: list[float] = []
        self.window = window
        for norm in norms:
            self.append(norm)

    def __len__(self) -> int:
        return len(self._norms)

    def append(self, norm: float) -> None:
        """Add a norm and drop the oldest beyond the window."""
        self._norms.append(norm)
        insort(self._sorted, norm)
        if self.window is not None and len(self._norms) > self.window:
            del self._sorted[bisect_left(self._sorted, self._norms.popleft())]

    def to_list(self) -> list[float]:
        """The norms, oldest first."""
        return list(self._norms)

    def median(self) -> float:
        """The lower median, which one absurd norm among two cannot move."""
        return self._sorted[(len(self._sorted) - 1) // 2]

    def largest(self, rank: int = 1) -> float:
        """The largest of them, or the second largest, the third …; the
        smallest where there are fewer.
        """
        return self._sorted[-min(rank, len(self._sorted))]

    def percentile(self, percentile: float) -> float:
        """Linear interpolation between the nearest ranks, rounded as
        ``numpy.percentile`` rounds it.
        """
        position = (len(self._sorted) - 1) * (percentile / 100.0)
        below = math.floor(position)
        low, high = self._sorted[below], self._sorted[min(below + 1, len(self._sorted) - 1)]
        part = position - below
        return low + (high - low) * part if part < 0.5 else high - (high - low) * (1.0 - part)
