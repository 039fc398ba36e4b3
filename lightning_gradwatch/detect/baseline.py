"""What is ordinary in this run: a robust centre and spread of the logarithms of a
positive number, learned as it goes.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

LARGEST = 700.0
"""Logarithms past this have no exponential in float64."""


class Baseline:
    """The median, the MAD and the maximum of the logs of the last ordinary values, and the bound
    that an ordinary one stays under.

    It works on logs, since norms and growths vary by factors; so a bound moves with the unit of
    what is measured, and no constant has to fit a model's scale. Median and MAD rather than mean
    and deviation: up to half of what is remembered may be out of the ordinary without moving them
    (Leys et al. 2013). Where values ordinarily scatter over decades, or between two levels, the
    deviations make a bound that nothing breaks; so it is never further than ``least_factor`` over
    the maximum. With less than a full window the bound is wider, by √(window/values), as the error
    of an estimate is: a young network leaves its first plateau by more than an order of magnitude.

    Args:
        window: values remembered.
        history: values before there is a bound.
        spread: robust standard deviations of the log that an ordinary value stays within, > 0.
        least_factor: however even a run is, less than this many times the median is ordinary, > 1;
            however uneven, more than this many times the maximum is not.
    """

    def __init__(self, *, window: int, history: int, spread: float, least_factor: float) -> None:
        self.window, self.history, self.spread, self.least = window, history, spread, math.log(least_factor)
        self._logs: deque[float] = deque(maxlen=window)
        self._fit: tuple[float, float, float] | None = None

    def remember(self, value: float) -> None:
        """Take in an ordinary value; what is not a positive finite number is passed over."""
        if 0 < value < math.inf:
            self._logs.append(math.log(value))
            self._fit = None

    def centre(self) -> float | None:
        """The ordinary value; None while there is too little history."""
        return math.exp(self._learned()[0]) if len(self._logs) >= self.history else None

    def largest(self) -> float:
        """The largest value remembered; 0 before the first."""
        return math.exp(max(self._logs)) if self._logs else 0.0

    def bound(self) -> float | None:
        """What an ordinary value stays under; None while there is too little history."""
        if len(self._logs) < self.history:
            return None
        middle, margin, largest = self._learned()
        wider = math.sqrt(self.window / len(self._logs))
        return math.exp(min(middle + wider * margin, largest + wider * self.least, LARGEST))

    def distance(self, value: float) -> float:
        """How far out of the ordinary a value lies on the log scale, in units in which the
        bound of a full window lies at 1.
        """
        middle, margin, largest = self._learned()
        return max((math.log(value) - middle) / margin, (math.log(value) - largest) / self.least)

    def _learned(self) -> tuple[float, float, float]:
        """Median, margin and maximum of the logarithms; worked out
        once for all who ask at a step.
        """
        if self._fit is None:
            middle = median(self._logs)
            deviation = 1.4826 * median([abs(value - middle) for value in self._logs])
            self._fit = middle, max(self.spread * deviation, self.least), max(self._logs)
        return self._fit
