"""A gradient norm that leaps out of what is ordinary for this run."""

from __future__ import annotations

import math

from lightning_gradwatch.detect.baseline import Baseline
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.remedy import jump_remedy
from lightning_gradwatch.events import Event, EventKind, Moment

WINDOW = 64
"""Steps that the baseline remembers."""

HISTORY = 16
"""Steps before it judges at all."""

SPREAD = 8.0
"""Robust standard deviations of the log norm that an ordinary step stays within."""

LEAST_FACTOR = 20.0
"""However even a run is, a step less than this many times the ordinary norm is no jump; however uneven, more than this many times
the largest norm remembered is one."""

EVIDENCE = 2.0
"""Two steps in a row over the bound; or one twice as far out of the ordinary, on the log scale, as the bound of a full window."""

CALM_STEPS = 8
"""An episode ends after so many steps in a row on the ordinary side of the middle between the ordinary norm and the bound."""


class NormJumpDetector:
    """Judges each step's norm against the running median and MAD of the log norms before it; one event an episode.

    A step over the bound adds its distance from the ordinary norm to the evidence, one under it clears it, and an episode begins at 2:
    an odd batch that stands out once, as real text has some, is none; an explosion goes on, or goes far.

    Norms that are zero or not finite are never remembered, and a jump is remembered as the bound that it broke: a norm that
    stays up becomes the ordinary one in half a window, and the episode ends.
    """

    def __init__(self) -> None:
        self._ordinary = Baseline(window=WINDOW, history=HISTORY, spread=SPREAD, least_factor=LEAST_FACTOR)
        self._episodes = Episodes(CALM_STEPS)
        self._evidence = 0.0
        self._suspect: float | None = None  # to be remembered of the step before, once this one has been judged

    def bound(self) -> float | None:
        """The norm that an ordinary step stays under; None while there is too little history."""
        return self._ordinary.bound()

    def __call__(self, norm: float, moment: Moment) -> Event | None:
        """Take in one step's norm. Returns the event of a jump that begins here, or the record of one that ends here."""
        if not 0 < norm < math.inf:
            return None
        bound, centre = self._ordinary.bound(), self._ordinary.centre()
        if bound is None or centre is None:
            self._ordinary.remember(norm)
            return None
        if self._episodes.is_open(()):
            self._ordinary.remember(min(norm, bound))
            return self._episodes.see((), norm, moment, calm=norm < math.sqrt(centre) * math.sqrt(bound))
        self._evidence = self._evidence + self._ordinary.distance(norm) if norm > bound else 0.0
        if 0 < self._evidence < EVIDENCE:
            self._suspect = bound
            return None
        event = self._begin(norm, bound, moment) if norm > bound else None
        for value in (self._suspect, min(norm, bound)):
            if value is not None:
                self._ordinary.remember(value)
        self._suspect = None
        return event

    def overflowed(self, norm: float, limit: float, moment: Moment) -> Event | None:
        """Take in a norm over ``limit``, past which its squares overflow float32: a jump whatever was ordinary, unless one goes on."""
        if self._episodes.is_open(()):
            return self._episodes.see((), norm, moment, calm=False)
        bound = min(self.bound() or limit, limit)
        return self._begin(norm, bound, moment, " The sum of its squares overflows float32.")

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return self._episodes.finish(moment)

    def _begin(self, norm: float, bound: float, moment: Moment, more: str = "") -> Event:
        self._evidence = 0.0
        event = moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=norm,
            threshold=bound,
            detail=f"It is that of all parameters of the recurrent modules.{more}",
            remedy=jump_remedy(self._ordinary.centre()),
        )
        return self._episodes.begin((), event, norm)
