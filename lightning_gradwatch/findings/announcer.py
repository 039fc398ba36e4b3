"""What is said on the terminal while a training runs: one line at once for
what must not wait until its end.
"""

from __future__ import annotations

from typing import Protocol

from lightning_gradwatch.events import Event, EventKind, Severity, closes_episode
from lightning_gradwatch.plain import plain

ROLLED_BACK = "rolled back"
"""The ``action`` of a skipped step after which the training went back to an earlier state."""


class Say(Protocol):
    """Says a text on the terminal."""

    def __call__(self, text: str, *, urgent: bool = False, everywhere: bool = False) -> None:
        """Say it.

        Args:
            urgent: as a warning.
            everywhere: on this rank, whichever it is.
        """
        ...


class Announcer:
    """Says the first critical event of each kind, that the training has diverged, and each way back
    to an earlier state, when it happens.

    Args:
        say: how; None says nothing.
    """

    def __init__(self, say: Say | None) -> None:
        self._say = say
        self._said: set[EventKind] = set()

    def hear(self, event: Event) -> None:
        """Say an event, if it is one of those."""
        say = self._say
        if say is None or closes_episode({"action": event.action}) or not self._is_news(event):
            return
        where = f"step {event.step}" + (f", rank {event.rank}" if event.rank else "")
        say(plain(f"GradWatch, {where}: {event.kind}. {event.message}"), urgent=True, everywhere=True)

    def _is_news(self, event: Event) -> bool:
        if event.kind == EventKind.STEP_SKIPPED and event.action == ROLLED_BACK:
            return True
        urgent = event.severity == Severity.CRITICAL or event.kind == EventKind.DIVERGED
        if not urgent or event.kind in self._said:
            return False
        self._said.add(event.kind)
        return True
