"""What a callback that watches lets its user ask for, while a fit goes on and after it."""

from __future__ import annotations

from lightning_gradwatch.audit import ClippingSummary
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.events import Event
from lightning_gradwatch.metrics import LaggedGradient, TotalGradient
from lightning_gradwatch.runlog.verdict import LayerSummary


class Found:
    """The findings of the present fit, or of the last one."""

    _found: WatchRecorder

    def _is_over(self) -> bool:
        """Whether the fit is over, be it without a word to us."""
        raise NotImplementedError

    @property
    def events(self) -> list[Event]:
        """The events of the present fit, or of the last one."""
        self._is_over()
        return self._found.events

    @property
    def verdicts(self) -> list[LayerSummary]:
        """What is to be thought of each module, layer and direction, from what was measured so far
        in the present fit, or in the last.
        """
        return self._found.verdicts()

    @property
    def clipping(self) -> list[ClippingSummary]:
        """What becomes of each optimizer's gradients between the backward pass and the step, in the
        present fit, as far as that is known, or in the last.
        """
        return self._found.clipping

    @property
    def lagged(self) -> dict[tuple[str, int, str], LaggedGradient]:
        """The lagged gradients accumulated over the fit, by module, layer and direction."""
        return self._found.lagged

    @property
    def totals(self) -> dict[tuple[str, int, str], TotalGradient]:
        """The total gradients accumulated over the fit, by module, layer and direction."""
        return self._found.totals
