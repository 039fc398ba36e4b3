"""A loss in which no weight has a part: every gradient of the model is exactly 0, or there is
none.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.thresholds import SEVERAL

_NONE = "The loss was sent back, and no parameter of the model got a gradient: nothing is learned."

_NONE_REMEDY = (
    "Look at where the loss lost its graph: a detach(), .item(), .data or numpy() on the way, a new torch.tensor(…) made of its "
    "value, or an output that was computed under no_grad()."
)

_BLOCKED_REMEDY = (
    "The loss sends a gradient to the hidden states, and none passes from there to a weight: look at the recurrent module and what it is "
    "given. Gates that are saturated, or relus that are dead, have no slope: standardise the inputs, or begin with smaller weights "
    "and a lower learning rate."
)


class ZeroGradient:
    """Told once, until a gradient is there again.

    A loss of exactly 0 (a hinge that is met, a reward that has not come) is no fault: nothing is
    left to learn from it. Nor is a single such pass.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._told = False

    def __call__(
        self,
        norm: float,
        loss: float | None,
        moment: Moment,
        all_zero: Callable[[], bool],
        reaches: Callable[[], bool] = lambda: False,
    ) -> Event | None:
        """Take in one backward pass.

        Args:
            norm: of the gradients of all parameters.
            loss: None where it is not known.
            all_zero: whether every entry is 0, and not only too small to be squared; asked only
                where the norm is 0.
            reaches: whether the loss sends a gradient to a recurrent module's states; asked only
                where it is told.
        """
        if norm != 0 or loss == 0:
            self._in_a_row, self._told = 0, False
            return None
        self._in_a_row += 1
        if self._told or self._in_a_row < SEVERAL or not all_zero():
            return None
        self._told = True
        remedy = _BLOCKED_REMEDY if reaches() else EventKind.ZERO_GRADIENT.remedy
        return moment.event(EventKind.ZERO_GRADIENT, value=0.0, detail=self._often(loss), remedy=remedy)

    def none_at_all(
        self, moment: Moment, loss: Callable[[], float | None], detached: Callable[[], bool]
    ) -> Event | None:
        """Take in a backward pass that left no parameter a gradient.

        Args:
            loss, detached: its value, and whether no weight is in its graph: somebody else may have
                taken the gradients away. Asked only where it may be told.
        """
        self._in_a_row += 1
        if self._told or self._in_a_row < SEVERAL:
            return None
        level = loss()
        if level == 0 or not detached():  # 0 is what one makes for a batch with nothing to learn from
            return None
        self._told = True
        return moment.event(EventKind.ZERO_GRADIENT, message=f"{_NONE} {self._often(level)}", remedy=_NONE_REMEDY)

    def _often(self, loss: float | None) -> str:
        level = "" if loss is None else f", although the loss is {loss:.4g}"
        return f"It was so {self._in_a_row} times in a row{level}."
