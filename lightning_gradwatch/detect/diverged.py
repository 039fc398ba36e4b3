"""A training that has diverged: the loss far above where the run began, and staying there, while the weights outgrew theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from lightning_gradwatch.events import Event, EventKind, Moment, Severity

FAR = 10.0
"""Times its first value, from which on a loss is far above the start ..."""

NEAR = 3.0
"""... and up to which it is still near it."""

CLEAR = 1000.0
"""Times its first value, from which on there is nothing to doubt."""

STAYS = 8
"""Steps in a row, and no fewer, that a loss must be far above the start."""

FAST = 64
"""Steps in which a diverging loss gets from near to far: schedules, returns and annealed terms rise more slowly."""

GROWTH = 5.0
"""Times their norm at the start that the weight matrices have grown to, in the median; healthy ones take thousands of steps for it."""

SOON = 256
"""Steps after the loss rose in which the weights must have grown: what comes later has other causes."""


class DivergenceDetector:
    """Takes the loss of every step, and the weights' norms of a few; one event a run.

    Neither alone would do. A loss may rise by its own nature (returns in reinforcement learning, an annealed term, an opponent that gets
    better), weights grow while they learn. A step that is too long does both at once, and soon.

    Args:
        weights: norm of each weight matrix before training, by a key that stays.
    """

    def __init__(self, weights: Mapping[int, float]) -> None:
        self._start = {key: norm for key, norm in weights.items() if 0 < norm < math.inf}
        self._first: tuple[float, float] | None = None  # loss and gradient norm
        self._steps = 0
        self._near = 0  # number of the last step whose loss was near the start
        self._far_since: int | None = None
        self._last = (0.0, 0.0)
        self._told = False

    def see(self, loss: float, norm: float) -> None:
        """Take in one step's loss and gradient norm."""
        if not math.isfinite(loss):
            return
        if self._first is None:
            self._first = (loss, norm) if loss else None
            return
        self._steps += 1
        self._last = loss, norm
        risen = self._risen(loss)
        if risen <= NEAR:
            self._near = self._steps
        if risen <= FAR:
            self._far_since = None
        elif self._far_since is None:
            self._far_since = self._steps

    def is_suspicious(self) -> bool:
        """Whether the loss is such that the weights are worth a look."""
        if self._told or self._far_since is None or self._far_since - self._near > FAST:
            return False
        return STAYS <= self._steps - self._far_since + 1

    def __call__(self, weights: Mapping[int, float], moment: Moment) -> Event | None:
        """The event, if the weights have grown too.

        Args:
            weights: their norms now, by the keys of the start.
        """
        if self._first is None or self._far_since is None:
            return None
        grown = [weights[key] / norm for key, norm in self._start.items() if key in weights]
        growth = median(grown) if grown else 0.0
        if not growth >= GROWTH:
            if self._steps - self._far_since > SOON:
                self._near = (
                    -FAST - 1
                )  # what rose so long ago is acquitted until the loss has been near its start again
            return None
        self._told = True
        (first, norm_then), (loss, norm) = self._first, self._last
        return moment.event(
            EventKind.DIVERGED,
            value=loss,
            threshold=first,
            severity=Severity.CRITICAL if self._risen(loss) >= CLEAR else None,
            detail=f"For {self._steps - self._far_since + 1} steps it has been more than {FAR:g} times that above it. The weight matrices have "
            f"grown to {growth:.3g} times their norm (median), the gradient norm went from {norm_then:.3g} to {norm:.3g}.",
        )

    def _risen(self, loss: float) -> float:
        """How far above its first value, in that value's size."""
        assert self._first is not None
        first = self._first[0]
        return loss / first if first > 0 else (loss - first) / -first
