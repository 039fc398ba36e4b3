"""A gradient norm that leaps out of what is ordinary for this run."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from lightning_gradwatch.events import Event, EventKind, Moment

WINDOW = 64
"""Steps that the baseline remembers."""

HISTORY = 16
"""Steps before it judges at all."""

SPREAD = 8.0
"""Robust standard deviations of the log norm that an ordinary step stays within."""

LEAST_FACTOR = 20.0
"""However even a run is, a step less than this many times the ordinary norm is no jump."""


class NormJumpDetector:
    """Judges each step's norm against the running median and MAD of the log norms before it.

    Norms that are zero or not finite are never remembered, and a jump is remembered as the bound that it broke.
    """

    def __init__(self) -> None:
        self._logs: deque[float] = deque(maxlen=WINDOW)
        self._jumping = False

    def bound(self) -> float | None:
        """The norm that an ordinary step stays under; None while there is too little history."""
        if len(self._logs) < HISTORY:
            return None
        middle = median(self._logs)
        deviation = 1.4826 * median(abs(value - middle) for value in self._logs)
        return math.exp(min(middle + max(SPREAD * deviation, math.log(LEAST_FACTOR)), 700.0))

    def __call__(self, norm: float) -> float | None:
        """Take in one step's norm. Returns the bound if the norm is over it and the step before was not."""
        if not 0 < norm < math.inf:
            return None
        bound = self.bound()
        over = bound is not None and norm > bound
        self._logs.append(math.log(bound if over and bound is not None else norm))
        begins = over and not self._jumping
        self._jumping = over
        return bound if begins else None

    @staticmethod
    def event(norm: float, bound: float, moment: Moment) -> Event:
        """The event of a jump."""
        return moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=norm,
            threshold=bound,
            detail="It is that of all parameters of the recurrent modules.",
        )
