"""A gradient norm that leaps out of what is ordinary for this run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning_gradwatch.detect.baseline import Baseline
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.leap import CLEAR_FACTOR, NORM_FACTOR, Leap, Leaps
from lightning_gradwatch.detect.loss_scale import Multiplied
from lightning_gradwatch.detect.recurring import OFTEN, Recurring
from lightning_gradwatch.detect.remedy import RISEN_REMEDY, jump_remedy, leap_remedy
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.thresholds import ENOUGH_EVIDENCE, ORDINARY_HISTORY, ORDINARY_SPREAD

NORM_WINDOW = 64
"""Steps that the baseline remembers."""

LEAST_NORM_FACTOR = 20.0
"""However even a run is, a step less than this many times the ordinary norm is no jump; however
uneven, more than this many times the largest norm remembered is one.
"""

IN_A_ROW = 3
"""Of the first steps so many must be far above the run's begin, or the last ones of a run that
ends with them."""

WENT_ON = 10.0
"""Times the loss of a leap: over this it was the begin of an explosion."""

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
    leap: Leap | None = None


def unknown() -> None:
    """Nobody knows whether the loss was multiplied."""


def perhaps() -> bool:
    """Nobody knows whether the weights have moved."""
    return True


class NormJumpDetector:
    """Judges each step's norm against the running median and MAD of the log norms
    before it; one event an episode.

    A step over the bound adds its distance from the ordinary norm to the evidence, one under it
    clears it, and an episode begins at 2: an odd batch that stands out once, as real text has some,
    is none; an explosion goes on, or goes far. The event is that of the first of these steps, whose
    batch did it. Where the loss leaps too, a single step is enough, and five before it to compare
    it with; and three in a row, in norm and loss far above the first two, from the first steps on.

    No jump are norms that come and go time and again, those of a loss that was multiplied or is
    another, and those near the run's first ones while the loss is not over its first ones either.

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
        self._leaps, self._recurring = Leaps(NORM_WINDOW), Recurring()
        self._scale = 1.0  # by which the loss was multiplied
        self._risen: list[_Step] = []  # in a row
        self._leapt: _Step | None = None
        self._since = 0  # steps
        self._held, self._came_before = 0.0, 0  # of the open episode: an early one's bound, and what had come and gone

    def bound(self) -> float | None:
        """The norm that an ordinary step stays under; None while there is too little history."""
        return self._ordinary.bound()

    def __call__(
        self,
        norm: float,
        moment: Moment,
        detail: Callable[[], str] = lambda: "",
        *,
        loss: float | None = None,
        multiplied: Callable[[], Multiplied | None] = unknown,
        moved: Callable[[], bool] = perhaps,
    ) -> Event | None:
        """Take in one step's norm. Returns the event of a jump that begins here, or
        the record of one that ends here.

        Args:
            detail: what there is to say of this step; asked only where it breaks the bound.
            loss: of the step, if it is known.
            multiplied: whether the loss itself was, since the steps before; asked only where the
                norm is large.
            moved: whether the weights have left where they began; asked only where loss and norm
                went up and stayed there.
        """
        if not 0 < norm < math.inf:
            return None
        bound = self._ordinary.bound()
        if self._episodes.is_open(()):
            return self._go_on(norm, loss, bound, moment)
        self._follow_loss(norm, multiplied)
        step = (
            self._judge_early(norm, loss, moment, detail)
            if bound is None
            else self._judge(norm, loss, bound, moment, detail)
        ) or self._confirmed(loss, moved)
        if step is None:
            return None
        event = self._begin(step)
        self._episodes.see((), norm, moment, calm=False)
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
        """Training is over: a leap or a rise of which no more will come, and what still goes on."""
        waiting = self._leapt or next(iter(self._risen), None)
        begun = [self._begin(waiting)] if waiting is not None and not self._episodes.is_open(()) else []
        return [*begun, *self._episodes.finish(moment)]

    def _follow_loss(self, norm: float, multiplied: Callable[[], Multiplied | None]) -> None:
        """Whether the loss is multiplied still, or is so from this step on.

        One of a thousand times the size is told all the same, unless it is another one.
        """
        largest = self._ordinary.largest()
        if norm <= NORM_FACTOR * largest:
            self._scale = 1.0
        elif self._scale == 1.0:  # an explosion may multiply it at one step, and will again at the next
            multiple = multiplied()
            usual = self._ordinary.centre() or self._leaps.middle
            if multiple is not None and (multiple.another or norm < CLEAR_FACTOR * usual):
                self._scale = multiple.factor

    def _judge_early(self, norm: float, loss: float | None, moment: Moment, detail: Callable[[], str]) -> _Step | None:
        """Of a step among the first; returns that with which a jump begins."""
        expected = self._recurring.expects(norm)
        leap = None if expected else self._leaps.stands_out(*self._plain(norm, loss))
        risen = None if expected else self._leaps.has_risen(*self._plain(norm, loss))
        self._risen = [] if risen is None else [*self._risen, self._step(risen, moment, detail())]
        event = None if leap is None else self._at_once(self._step(leap, moment, detail()))
        self._learn(norm, loss, None if event is None else NORM_FACTOR * self._leaps.largest)
        return event

    def _judge(
        self, norm: float, loss: float | None, bound: float, moment: Moment, detail: Callable[[], str]
    ) -> _Step | None:
        """The same of a step with enough before it."""
        self._risen = []
        size, plain_loss = self._plain(norm, loss)
        expected = self._recurring.expects(norm) or self._leaps.is_back(size, plain_loss)
        step = _Step(norm, bound * self._scale, moment, detail()) if size > bound and not expected else None
        leap = None if expected else self._leaps.stands_out(size, plain_loss)
        self._evidence = 0.0 if step is None else self._evidence + self._ordinary.distance(size)
        event = None
        if step is not None and self._evidence >= ENOUGH_EVIDENCE:
            event = self._suspect or step
        elif leap is not None and leap.loss is not None:
            event = self._at_once(self._step(leap, moment, detail()))
        if step is not None and event is None:
            self._suspect = step
            self._recurring.see(norm, large=True)
            return None
        if self._suspect is not None:
            self._ordinary.remember(self._suspect.bound / self._scale)
            self._suspect = None
        self._learn(norm, loss, bound)
        return event

    def _at_once(self, leapt: _Step) -> _Step | None:
        """A leap that needs no more to be told; others wait for what comes of them."""
        assert leapt.leap is not None
        if leapt.norm >= CLEAR_FACTOR * leapt.leap.than:
            return leapt
        self._leapt, self._since = leapt, -1
        return None

    def _confirmed(self, loss: float | None, moved: Callable[[], bool]) -> _Step | None:
        """A leap or a rise that the steps after it confirm. Loss and norm that went up once and
        stay there, while the weights have not moved far, are those of another task.
        """
        if self._leapt is not None:
            self._since += 1
            verdict = self._came_of_it(self._leapt, self._plain(0.0, loss)[1], moved) if self._since else None
            if verdict is not None:
                event, self._leapt = self._leapt if verdict else None, None
                return event
        return self._risen[0] if len(self._risen) >= IN_A_ROW and moved() else None

    def _came_of_it(self, leapt: _Step, loss: float | None, moved: Callable[[], bool]) -> bool | None:
        """Whether a leap is to be told; None while that is open."""
        leap = leapt.leap
        if leap is None or leap.loss is None or loss is None:
            return True
        if loss < math.sqrt(leap.loss * leap.than_loss) or loss > WENT_ON * leap.loss:
            return True
        return moved() if self._since >= IN_A_ROW else None

    def _plain(self, norm: float, loss: float | None) -> tuple[float, float | None]:
        """The two of the loss before it was multiplied."""
        return norm / self._scale, None if loss is None else loss / self._scale

    def _step(self, leap: Leap, moment: Moment, detail: str) -> _Step:
        leap = leap.scaled(self._scale)
        return _Step(leap.norm, leap.than, moment, detail, leap)

    def _go_on(self, norm: float, loss: float | None, bound: float | None, moment: Moment) -> Event | None:
        """Take in a step of an open episode; ``bound`` is None among the first steps."""
        bound, centre = bound or self._held, self._ordinary.centre() or self._leaps.middle
        calm = norm < math.sqrt(centre) * math.sqrt(bound)
        self._learn(norm, loss, bound)
        times = self._recurring.count - self._came_before
        if calm and times >= OFTEN and self._leaps.is_low(loss):
            return self._episodes.recurs((), moment, times)
        return self._episodes.see((), norm, moment, calm=calm)

    def _learn(self, norm: float, loss: float | None, bound: float | None) -> None:
        """Remember a step, as the bound if it broke that."""
        self._recurring.see(norm, large=norm > (bound or LEAST_NORM_FACTOR * (self._leaps.middle or norm)))
        size, _ = self._plain(norm, loss)
        self._ordinary.remember(size if bound is None else min(size, bound))
        self._leaps.remember(norm if bound is None or self._scale > 1 else min(norm, bound), loss)

    def _begin(self, step: _Step) -> Event:
        self._evidence, self._risen, self._leapt = 0.0, [], None
        if step.leap is not None:
            self._held = NORM_FACTOR * step.leap.than
        self._came_before = self._recurring.count
        event = step.moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=step.norm,
            threshold=step.bound,
            detail=step.detail,
            message="" if step.leap is None else f"{step.leap} {step.detail}".rstrip(),
            remedy=self._remedy(step),
        )
        return self._episodes.begin((), event, step.norm)

    def _remedy(self, step: _Step) -> str:
        leap = step.leap
        if leap is not None and leap.risen:
            return RISEN_REMEDY
        if leap is not None and leap.norm < CLEAR_FACTOR * leap.than:
            return leap_remedy(leap.than, step.moment)
        return jump_remedy(self._ordinary.centre(), step.moment)
