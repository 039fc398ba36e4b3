"""What is said on the terminal while a training runs: one line at once for
what must not wait until its end.
"""

from __future__ import annotations

from lightning_gradwatch.events import Event, EventKind, Severity, closes_episode
from lightning_gradwatch.plain import plain
from lightning_gradwatch.trainer.compat import say

ROLLED_BACK = "rolled back"
"""The ``action`` of a skipped step after which the training went back to an earlier state."""


class Announcer:
    """Says the first critical event of each kind, and each way back to an
    earlier state, when it happens.

    Args:
        silent: say nothing.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self._said: set[EventKind] = set()

    def hear(self, event: Event) -> None:
        """Say an event, if it is one of those."""
        if self.silent or closes_episode({"action": event.action}) or not self._is_news(event):
            return
        where = f"step {event.step}" + (f", rank {event.rank}" if event.rank else "")
        say(plain(f"GradWatch, {where}: {event.kind}. {event.message}"), urgent=True, everywhere=True)

    def _is_news(self, event: Event) -> bool:
        if event.kind == EventKind.STEP_SKIPPED and event.action == ROLLED_BACK:
            return True
        if event.severity != Severity.CRITICAL or event.kind in self._said:
            return False
        self._said.add(event.kind)
        return True
