"""Whether hooks have nothing to do: their fit is over, although nobody came to take them off, or
somebody runs a model beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


class _Beside:
    """How many runs beside the training are open."""

    depth = 0


@contextmanager
def beside_training() -> Generator[None]:
    """What runs within is no part of the training: only hooks that are made within hear of it."""
    _Beside.depth += 1
    try:
        yield
    finally:
        _Beside.depth -= 1


class FitIsOver:
    """Asked by every hook before it does anything. A copy of it, as a copied
    model carries along, asks nobody.

    Args:
        ask: whether the fit is over; it takes the hooks off where it is. None is never.
    """

    def __init__(self, ask: Callable[[], bool] | None = None) -> None:
        self._ask, self._depth = ask, _Beside.depth

    def __call__(self) -> bool:
        return self._depth != _Beside.depth or (self._ask is not None and self._ask())

    def __reduce__(self) -> tuple[Any, ...]:
        return FitIsOver, ()
