"""Mixed precision's search for a loss scale: normal while it ends, an alarm when it does not."""

from __future__ import annotations

import math

from lightning_gradwatch.events import Event, EventKind, Moment, Severity

LONGEST_SEARCH = 16
"""Overflows in a row that a search may always need: PyTorch's scaler starts at 2¹⁶ and halves, so
that these bring it down to 1.
"""


class ScaleSearch:
    """Notes the first overflow of a row of them; makes an alarm of it when the row does not end.

    It does not end when the scale is under 1, where the gradients overflow though they are made
    smaller, or after more overflows in a row than it takes to halve the scale down to 1.
    """

    def __init__(self) -> None:
        self._row = 0
        self._first = 1.0  # the scale under which the row began
        self._alarmed = False

    def ended(self) -> None:
        """A step was finite."""
        self._row, self._alarmed = 0, False

    def overflowed(self, located: Event, scale: float, moment: Moment, *, complete: bool = True) -> Event | None:
        """Take in an overflow. Returns the note of a row that begins, or the
        alarm of one that does not end.

        Args:
            located: where it began, which the alarm passes on.
            complete: whether it is that of a whole step. One of a micro-batch only begins a row:
                the micro-batches after it have its gradients in theirs.
        """
        if self._row and not complete:
            return None
        self._row += 1
        self._first = scale if self._row == 1 else self._first
        if (scale < 1 or self._row > max(LONGEST_SEARCH, math.log2(self._first))) and not self._alarmed:
            self._alarmed = True
            return self._alarm(located, scale, moment)
        if self._row > 1:
            return None
        return moment.event(EventKind.AMP_OVERFLOW, value=scale, action="skipped")

    def _alarm(self, located: Event, scale: float, moment: Moment) -> Event:
        row = f"It is the {self._row}. overflow in a row" + (
            ", under a scale that makes gradients smaller." if scale < 1 else "."
        )
        return moment.event(
            EventKind.AMP_OVERFLOW,
            module=located.module,
            layer=located.layer,
            direction=located.direction,
            state=located.state,
            timestep=located.timestep,
            sequence=located.sequence,
            parameter=located.parameter,
            value=scale,
            threshold=1.0,
            action="skipped",
            severity=Severity.WARNING,
            message=f"The search for a loss scale does not end: gradients overflow under {scale:g} as well, and no step is taken. "
            f"{row} It begins at {located.place}.",
            remedy="The gradients themselves overflow or are NaN, whatever the scale: train in {bfloat16}, whose range is that of float32, "
            "and look at the place that is named (Micikevicius et al. 2018).",
        )
