"""Whether the fit that hooks were put on for is over, although nobody came to take them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FitIsOver:
    """Asked by every hook before it does anything. A copy of it, as a copied
    model carries along, asks nobody.

    Args:
        ask: whether the fit is over; it takes the hooks off where it is. None is never.
    """

    def __init__(self, ask: Callable[[], bool] | None = None) -> None:
        self._ask = ask

    def __call__(self) -> bool:
        return self._ask is not None and self._ask()

    def __reduce__(self) -> tuple[Any, ...]:
        return FitIsOver, ()
