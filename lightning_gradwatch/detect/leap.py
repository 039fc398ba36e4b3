"""A gradient norm that leaps together with the loss: clear at once, with a few steps to go by."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from statistics import median

LOSS_FACTOR = 30.0
"""Times the largest loss remembered: with such a loss a larger gradient is no accident of a
batch."""

NORM_FACTOR = 2.0
"""Times the largest norm remembered, with such a loss."""

CLEAR_FACTOR = 400.0
"""Times the largest norm remembered, whatever the loss."""

FEWEST = 5
"""Steps before a single one can stand out from them."""

RISEN_FACTOR = 20.0
"""Times the norm with which the run began."""

BEGIN = 2
"""Steps with which a run begins."""

START = 16
"""Steps, of which the largest norm and loss are those of a run's start."""


@dataclass(frozen=True, slots=True)
class Leap:
    """A step that stands out, and what it stands out from.

    Args:
        norm, loss: of the step; the loss is None where it does not stand out.
        than, than_loss: the largest of the steps before, or of those with which the run began.
        steps: how many those are.
        risen: whether it is those with which the run began.
    """

    norm: float
    loss: float | None
    than: float
    than_loss: float
    steps: int
    risen: bool = False

    def scaled(self, factor: float) -> Leap:
        """The same of a loss ``factor`` times as large."""
        loss = None if self.loss is None else self.loss * factor
        return replace(
            self, norm=self.norm * factor, loss=loss, than=self.than * factor, than_loss=self.than_loss * factor
        )

    def __str__(self) -> str:
        before = f"largest of the {self.steps} steps before"
        if self.loss is None:
            return f"The gradient norm of the model jumped to {self.norm:.3g}; the {before} was {self.than:.3g}."
        now = f"to {self.norm:.3g} and the loss to {self.loss:.4g}"
        then = f"{self.than:.3g} and {self.than_loss:.4g}"
        if self.risen:
            return (
                f"The gradient norm of the model rose {now}; at the first {self.steps} steps they were at most {then}."
            )
        return f"The gradient norm of the model jumped {now}; the {before} were {then}."


class Leaps:
    """The norms and losses of the last steps, and those with which the run began.

    Args:
        window: steps remembered.
    """

    def __init__(self, window: int) -> None:
        self._norms: deque[float] = deque(maxlen=window)
        self._losses: deque[float] = deque(maxlen=window)
        self._begin, self._start = (0.0, 0.0), (0.0, 0.0)
        self._count = 0

    def remember(self, norm: float, loss: float | None) -> None:
        """Take in a step."""
        self._count += 1
        self._norms.append(norm)
        if loss is not None:
            self._losses.append(loss)
        if self._count <= START:
            self._start = max(self._norms), max(self._losses, default=0.0)
        if self._count <= BEGIN:
            self._begin = self._start

    @property
    def middle(self) -> float:
        """The median norm; 0 before the first step."""
        return median(self._norms) if self._norms else 0.0

    @property
    def largest(self) -> float:
        """The largest norm remembered; 0 before the first step."""
        return max(self._norms, default=0.0)

    def stands_out(self, norm: float, loss: float | None) -> Leap | None:
        """A single step far over all that are remembered."""
        if len(self._norms) < FEWEST:
            return None
        most = max(self._losses, default=0.0)
        with_loss = loss is not None and loss > max(LOSS_FACTOR * most, self._start[1]) and most > 0
        if norm <= (NORM_FACTOR if with_loss else CLEAR_FACTOR) * self.largest:
            return None
        return Leap(norm, loss if with_loss else None, self.largest, most, len(self._norms))

    def has_risen(self, norm: float, loss: float | None) -> Leap | None:
        """A step far over the first ones in its norm and its loss."""
        begin, first = self._begin
        if self._count < BEGIN or loss is None or not loss > LOSS_FACTOR * first > 0 or not norm > RISEN_FACTOR * begin:
            return None
        return Leap(norm, loss, begin, first, BEGIN, risen=True)

    def is_low(self, loss: float | None) -> bool:
        """Whether a loss is about that of the run's start, or lower, as far as is known."""
        return loss is None or loss <= NORM_FACTOR * self._start[1]

    def is_back(self, norm: float, loss: float | None) -> bool:
        """Whether the run is no worse than at its start: as at a harder batch, or a new task."""
        start, first = self._start
        return loss is not None and loss <= first and norm <= RISEN_FACTOR * start
