"""Clipping at a percentile of the norms so far."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.history import History
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, StepReading, bounded, usable

_ABSURD = 100.0  # times the median: what lies beyond enters the history as this much


class AutoClip(ArgumentsMixin):
    """Append N to the history, then clip at its p-th percentile: c =
    percentile(history, p); g ← g·c/N if N > c.

    Seetharaman, Wichern, Pardo and Le Roux (2020), "AutoClip: Adaptive gradient clipping for source
    separation networks", eq. 4. It clips most steps (at p = 10, nine in ten): it normalises rather
    than waits for an explosion.

    ``as_published`` keeps every norm and scales by c/(N + 1e-6), as ``clip_grad_norm_`` does. The
    hardened form differs where that breaks:

    ================================  ======================================  ==================================
    input                             as published                            hardened
    ================================  ======================================  ==================================
    one NaN or inf                    the percentile is NaN for ever          it never enters the history
    a zero norm                       pulls the threshold to 0                it never enters the history
    one norm of 1e30 early on         stands in the history for ever          enters as 100 medians at most
    a long run                        the history, and the checkpoint, grow   the last ``window`` norms
    norms of 1e-9                     the 1e-6 shrinks them                   no constant: scale-equivariant
    ================================  ======================================  ==================================

    Args:
        percentile: p, in per cent.
        window: how many norms the hardened form keeps.
        as_published: follow the paper where it breaks, too.
    """  # noqa: W505  # a table keeps its width

    _arguments = ("percentile", "window", "as_published")

    def __init__(self, percentile: float = 10.0, window: int = 10_000, as_published: bool = False) -> None:
        rule, remedy = "between 0 and 100", "The paper advises 10."
        self.percentile = arguments.number("percentile", percentile, lambda f: 0 <= f <= 100, rule, remedy, owner=self)
        remedy = "Leave it at 10,000, or use `as_published=True` to keep all."
        self.window = arguments.whole("window", window, remedy, owner=self)
        self.as_published = as_published
        self._history = self._new_history([])
        self._poisoned = False  # a NaN or inf has entered (as published only); such a list has no order

    def decide(self, reading: StepReading) -> Decision:
        """Clip at the percentile of the norms so far, this one included."""
        norm = reading.norm
        if self.as_published:
            return self._decide_as_published(norm)
        if not usable(norm):
            return Decision(self._history.percentile(self.percentile) if len(self._history) else None, 1.0)
        ordinary = _ABSURD * self._history.median() if len(self._history) else norm
        self._history.append(min(norm, ordinary))
        return bounded(norm, self._history.percentile(self.percentile))

    def state_dict(self) -> dict[str, Any]:
        """The history, oldest first."""
        return {"history": self._history.to_list(), "poisoned": self._poisoned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a history."""
        self._history = self._new_history(state_dict["history"])
        self._poisoned = bool(state_dict["poisoned"])

    def _decide_as_published(self, norm: float) -> Decision:
        self._poisoned = self._poisoned or not math.isfinite(norm)
        if self._poisoned:
            return Decision(math.nan, math.nan)
        self._history.append(norm)
        threshold = self._history.percentile(self.percentile)
        return Decision(threshold, min(1.0, threshold / (norm + 1e-6)))

    def _new_history(self, norms: list[float]) -> History:
        return History(None if self.as_published else self.window, norms)
