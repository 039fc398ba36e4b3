"""Where a callback's events go: its own list, the run log, the user's callable."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.events import Event
from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.writer import RunLogWriter


class EventSink:
    """The events of one fit. What belongs to the running fit (``log``) is let go of when it ends.

    Args:
        on_event: the user's callable; an error in it is one warning.

    Attributes:
        events: all of them, in order.
        log: the run log, while there is one.
    """

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        self.events: list[Event] = []
        self.log: RunLogWriter | None = None
        self._on_event = on_event
        self._warned = False

    def take(self, event: Event, *, write: bool = True) -> None:
        """Keep an event and hand it on.

        Args:
            write: whether it is this rank that writes it to the run log.
        """
        self.events.append(event)
        if self.log is not None and write:
            self.log.event(event)
        if self._on_event is not None:
            self._tell(self._on_event, event)

    def _tell(self, on_event: Callable[[Event], None], event: Event) -> None:
        try:
            on_event(event)
        except Exception as error:  # the user's own callable: its failure must not harm the run
            if not self._warned:
                self._warned = True
                warn(
                    f"`on_event` failed ({type(error).__name__}: {error}); the event is kept, and the training goes on.",
                    stacklevel=2,
                )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "log": None}
