"""The losses that a step's gradients come from."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

MOST = 64
"""Backward passes whose losses are kept for one step: where none is taken, they are not to pile up
without end.
"""


class PassLosses:
    """The losses of the backward passes since the last step. All optimizers that step before the
    next pass have them in common. A copy, and one that was pickled, has none.
    """

    def __init__(self) -> None:
        self._losses: deque[Tensor] = deque(maxlen=MOST)
        self._stepped = False  # since the last pass

    def begin_pass(self, loss: Tensor | None) -> None:
        """A backward pass begins; without a loss where none is known that is one number."""
        if self._stepped:
            self.clear()
        if loss is not None:
            self._losses.append(loss)

    def of_step(self) -> list[Tensor]:
        """A step is taken: the losses, oldest first."""
        self._stepped = True
        return list(self._losses)

    def clear(self) -> None:
        """Forget them."""
        self._losses.clear()
        self._stepped = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
