"""Large gradients that come and go, time and again: part of a run, not an explosion of it."""

from __future__ import annotations

from collections import deque

OFTEN = 3
"""Large norms that have come and gone so often are expected to come again."""

SHORT = 8
"""Steps in a row; what stays longer does not merely come and go."""

AS_LARGE = 20.0
"""One less than this many times as large as those before is one of them."""


class Recurring:
    """Remembers the last stretches of large norms that came and went.

    So it is where losses alternate, where a few batches belong to another task, where each epoch
    ends with an odd batch. An explosion goes on, or goes further.
    """

    def __init__(self) -> None:
        self._gone: deque[float] = deque(maxlen=OFTEN)  # the largest norm of each
        self._steps, self._peak, self.count = 0, 0.0, 0

    def expects(self, norm: float) -> bool:
        """Whether a norm, if it is large, is one of those that come and go."""
        often = len(self._gone) == OFTEN and norm < AS_LARGE * min(self._gone)
        return often and self._steps < SHORT

    def see(self, norm: float, *, large: bool) -> None:
        """Take in a step's norm, once it has been judged."""
        if large:
            self._steps, self._peak = self._steps + 1, max(self._peak, norm)
        elif self._steps:
            if self._steps <= SHORT:
                self._gone.append(self._peak)
                self.count += 1
            self._steps, self._peak = 0, 0.0
