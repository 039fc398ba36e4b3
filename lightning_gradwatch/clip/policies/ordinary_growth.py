"""How much the gradient ordinarily grows through time."""

from __future__ import annotations

from typing import Any

from lightning_gradwatch.clip.history import History
from lightning_gradwatch.clip.policy import usable


class OrdinaryGrowth:
    """The least median of ``window`` successive growths so far: growth that rises is never learned
    as ordinary.

    Args:
        window: in steps.
        factor: so many times the ordinary growth is out of all proportion.
    """

    def __init__(self, window: int, factor: float) -> None:
        self._window, self._factor = window, factor
        self._last = History(window)
        self._ordinary: float | None = None

    def exceeded(self, growth: float | None) -> bool:
        """Whether a step's gradient has grown through time out of all proportion; remember it."""
        if growth is None or not usable(growth):
            return False
        exceeded = self._ordinary is not None and growth > self._factor * self._ordinary
        self._last.append(growth)
        if len(self._last) == self._window:
            median = self._last.median()
            self._ordinary = median if self._ordinary is None else min(self._ordinary, median)
        return exceeded

    def state_dict(self) -> dict[str, Any]:
        """The last growths, oldest first, and the ordinary one."""
        return {"last": self._last.to_list(), "ordinary": self._ordinary}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._last, self._ordinary = History(self._window, state["last"]), state["ordinary"]
