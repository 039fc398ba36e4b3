"""A loss in which no weight has a part: every gradient of the model is exactly 0."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.thresholds import SEVERAL


class ZeroGradient:
    """Told once, until a gradient is there again.

    A loss of exactly 0 (a hinge that is met, a reward that has not come) is no fault: nothing is
    left to learn from it. Nor is a single such pass.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._told = False

    def __call__(self, norm: float, loss: float | None, moment: Moment, all_zero: Callable[[], bool]) -> Event | None:
        """Take in one backward pass.

        Args:
            norm: of the gradients of all parameters.
            loss: None where it is not known.
            all_zero: whether every entry is 0, and not only too small to be squared; asked only
                where the norm is 0.
        """
        if norm != 0 or loss == 0:
            self._in_a_row, self._told = 0, False
            return None
        self._in_a_row += 1
        if self._told or self._in_a_row < SEVERAL or not all_zero():
            return None
        self._told = True
        level = "" if loss is None else f", although the loss is {loss:.4g}"
        return moment.event(
            EventKind.ZERO_GRADIENT, value=0.0, detail=f"It was so {self._in_a_row} times in a row{level}."
        )
