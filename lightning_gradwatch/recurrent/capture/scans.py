"""The scans of a training step, as ``tap_scan`` marks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from lightning_gradwatch.recurrent.gradient_slot import GradientSlot
from lightning_gradwatch.recurrent.scan import Scan

DETACHED = (
    "the states given to tap_scan() need no gradient: they were detached before, or nothing that made them trains"
)
"""Why a scan is not kept through which no gradient will come."""

EMPTY = "its batch was empty"


class Scans:
    """Those that can train.

    Args:
        add: takes each.
        clock: optimizer steps done so far.
    """

    def __init__(self, add: Callable[[Scan], None], clock: Callable[[], int]) -> None:
        self._add, self._clock = add, clock
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
        self._add(scan)
        return None
