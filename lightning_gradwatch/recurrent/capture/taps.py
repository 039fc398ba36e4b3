"""``tap``: mark a hidden state inside a recurrence of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from lightning_gradwatch.recurrent.capture.compiled import must_not_break

T = TypeVar("T", bound=Tensor)

_listeners: list[Callable[[str, Tensor], None]] = []


def tap(h: T, name: str = "tap") -> T:
    """Mark ``h`` as the next hidden state of the recurrence ``name``, and return it unchanged.

    Call it once a timestep, on what goes into the next one. A GradWatch that is training measures
    the states of a name as one sequence; without one, nothing happens.

    Args:
        h: ``(batch, hidden)`` or ``(hidden,)``; of more dimensions, the batch
            first, or ``(1, batch, hidden)``.
        name: under which the recurrence is reported.

    Raises:
        TypeError: ``h`` is no tensor.
    """
    if not isinstance(h, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # what users pass is not checked otherwise
        raise TypeError(f"`h` must be a tensor; found {type(h).__name__}. Tap h and c of an LSTM under two names.")
    if not _listeners or must_not_break():
        return h
    for listener in tuple(_listeners):  # one that finds its fit over ends its listening
        listener(name, h)
    return h


def listen(listener: Callable[[str, Tensor], None]) -> Callable[[], None]:
    """Have ``listener`` told of every tap; call what is returned to end it."""
    _listeners.append(listener)

    def end() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return end
