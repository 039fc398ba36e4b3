"""A gradient norm that leaps out of what is ordinary for this run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from lightning_gradwatch.detect.baseline import Baseline
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.remedy import jump_remedy
from lightning_gradwatch.events import Event, EventKind, Moment, closes_episode
from lightning_gradwatch.thresholds import ENOUGH_EVIDENCE, ORDINARY_HISTORY, ORDINARY_SPREAD

NORM_WINDOW = 64
"""Steps that the baseline remembers."""

LEAST_NORM_FACTOR = 20.0
"""However even a run is, a step less than this many times the ordinary norm is no jump; however
uneven, more than this many times the largest norm remembered is one.
"""

CALM_STEPS = 8
"""An episode ends after so many steps in a row on the ordinary side of the middle between
the ordinary norm and the bound.
"""


@dataclass(frozen=True)
class _Step:
    """A step over the bound: its norm, the bound, when it was, and what there is to say of it."""

    norm: float
    bound: float
    moment: Moment
    detail: str


class NormJumpDetector:
    """Judges each step's norm against the running median and MAD of the log norms
    before it; one event an episode.

    A step over the bound adds its distance from the ordinary norm to the evidence, one under it
    clears it, and an episode begins at 2: an odd batch that stands out once, as real text has some,
    is none; an explosion goes on, or goes far. The event is that of the first of these steps, whose
    batch did it.

    Norms that are zero or not finite are never remembered, and a jump is remembered as the bound
    that it broke: a norm that stays up becomes the ordinary one in half a window, and the episode
    ends.
    """

    def __init__(self) -> None:
        self._ordinary = Baseline(
            window=NORM_WINDOW, history=ORDINARY_HISTORY, spread=ORDINARY_SPREAD, least_factor=LEAST_NORM_FACTOR
        )
        self._episodes = Episodes(CALM_STEPS)
        self._evidence = 0.0
        self._suspect: _Step | None = None  # to be remembered of the step before, once this one has been judged

    def bound(self) -> float | None:
        """The norm that an ordinary step stays under; None while there is too little history."""
        return self._ordinary.bound()

    def __call__(self, norm: float, moment: Moment, detail: Callable[[], str] = lambda: "") -> Event | None:
        """Take in one step's norm. Returns the event of a jump that begins here, or
        the record of one that ends here.

        Args:
            detail: what there is to say of this step; asked only where it breaks the bound.
        """
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
        step = _Step(norm, bound, moment, detail()) if norm > bound else None
        if step is not None and self._evidence < ENOUGH_EVIDENCE:
            self._suspect = step
            return None
        event = None
        if step is not None:
            event = self._begin(self._suspect or step)
            self._episodes.see((), norm, moment, calm=False)
        for value in (self._suspect and self._suspect.bound, min(norm, bound)):
            if value is not None:
                self._ordinary.remember(value)
        self._suspect = None
        return event

    def overflowed(self, norm: float, limit: float, moment: Moment, detail: str = "") -> Event | None:
        """Take in a norm over ``limit``, past which its squares overflow float32: a jump whatever
        was ordinary, unless one goes on.
        """
        if self._episodes.is_open(()):
            return self._episodes.see((), norm, moment, calm=False)
        bound = min(self.bound() or limit, limit)
        return self._begin(_Step(norm, bound, moment, f"{detail} The sum of its squares overflows float32.".lstrip()))

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return self._episodes.finish(moment)

    def _begin(self, step: _Step) -> Event:
        self._evidence = 0.0
        event = step.moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=step.norm,
            threshold=step.bound,
            detail=step.detail,
            remedy=jump_remedy(self._ordinary.centre(), step.moment),
        )
        return self._episodes.begin((), event, step.norm)


class NormJumps:
    """The norm of the recurrent modules' gradients and that of all parameters, judged
    side by side; one event for both.

    Of the whole there is one series for each backward pass within a batch: where the training calls
    backward by itself, the gradients that earlier passes left are among them.
    """

    def __init__(self) -> None:
        self._recurrent = NormJumpDetector()
        self._whole: defaultdict[int, NormJumpDetector] = defaultdict(NormJumpDetector)
        self._told: NormJumpDetector | None = None  # whose episode is the one that was told

    def __call__(
        self, recurrent: float, whole: float, nth: int, moment: Moment, detail: Callable[[bool], str]
    ) -> Event | None:
        """Take in one step's norms. Returns the event of a jump that begins here, or
        the record of one that ends here.

        Args:
            nth: which backward pass of the batch it is.
            detail: what there is to say of the step, by whether it is
                about the recurrent modules alone.
        """
        found = [
            (self._recurrent, self._recurrent(recurrent, moment, lambda: detail(True))),
            (self._whole[nth], self._whole[nth](whole, moment, lambda: detail(False))),
        ]
        told = [event for detector, event in found if event is not None and self._is_told(detector, event)]
        return told[0] if told else None

    def overflowed(self, whole: float, limit: float, nth: int, moment: Moment, detail: str) -> Event | None:
        """Take in a norm whose squares overflow."""
        event = self._whole[nth].overflowed(whole, limit, moment, detail)
        return event if event is not None and self._is_told(self._whole[nth], event) else None

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return [] if self._told is None else self._told.finish(moment)

    def _is_told(self, detector: NormJumpDetector, event: Event) -> bool:
        """Whether an event is no mere echo of an episode that another of the series began."""
        ends = closes_episode(event.to_record())
        if self._told is not (detector if ends else None):
            return False
        self._told = None if ends else detector
        return True
