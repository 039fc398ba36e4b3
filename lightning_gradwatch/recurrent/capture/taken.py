"""The calls that a backward pass reached."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.loops import Loops
from lightning_gradwatch.recurrent.capture.unread import Unread
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

Call = RecurrentCall | Loop | Scan


class Taken:
    """Calls of cells are joined to sequences when somebody asks for ``calls``,
    which after most backward passes nobody does.

    Args:
        calls: that are sequences already.
        unread: what is not.

    Attributes:
        modules: the names of those that a gradient reached.
        unreached: the names of those that none will reach any more.
    """

    def __init__(self, calls: Iterable[Call] = (), unread: Unread | None = None) -> None:
        self._calls, self._unread = list(calls), unread
        heard = [] if unread is None else unread.arrived()
        self.modules = {call.module for call in (*self._calls, *heard)}
        self.unreached = {call.module for call in unread.heard()} - self.modules if unread is not None else set[str]()

    @property
    def calls(self) -> list[Call]:
        """In order of their first forward."""
        if self._unread is not None:
            joined: list[Call] = []
            unread, self._unread = self._unread, None
            unread.read_into(joined, Loops(joined), final=True)
            self._calls = [call for call in joined if call.has_gradient()]
        return self._calls

    def release(self) -> None:
        """Let go of the gradients."""
        if self._unread is not None:
            self._unread.clear()
            self._unread = None
        for call in self._calls:
            call.release()
