"""The scans of a training step, as ``tap_scan`` marks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableSequence
from dataclasses import replace

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

DETACHED = (
    "the states given to tap_scan() need no gradient: they were detached before, or nothing that made them trains"
)
"""Why a scan is not kept through which no gradient will come."""

EMPTY = "its batch was empty"


class Scans:
    """Those that can train, each appended to ``calls``.

    Args:
        clock: optimizer steps done so far.
    """

    def __init__(self, calls: MutableSequence[RecurrentCall | Loop | Scan], clock: Callable[[], int]) -> None:
        self._calls, self._clock = calls, clock
        self._number: Counter[str] = Counter()

    def clear(self) -> None:
        """A new step begins."""
        self._number.clear()

    def keep(self, marked: Scan) -> str | None:
        """One scan, of which others may listen too. Returns why it is not kept, if it is not."""
        if not marked.state.requires_grad:
            return DETACHED
        if not marked.state.numel():
            return EMPTY
        scan = replace(marked, index=self._number[marked.module], step=self._clock(), slot=GradientSlot())
        self._number[marked.module] += 1
        scan.watch_gradient()
        self._calls.append(scan)
        return None
