"""A training that has diverged: the loss far above where the run began, and staying there,
while the weights outgrew theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from lightning_gradwatch.events import ENDED, Event, EventKind, Moment, Severity
from lightning_gradwatch.tools import tools_at_hand

CLEAR = 1000.0
"""Times its first value, from which on a loss leaves nothing to doubt."""

STAYS = 8
"""Steps in a row, and no fewer, that a loss must be far above the start;
or near it, to have come back.
"""

FAST = 64
"""Steps in which a diverging loss gets from near to far: schedules, returns and
annealed terms rise more slowly.
"""

SOON = 256
"""Steps after the loss rose in which the weights must have grown:
what comes later has other causes.
"""


_OF_DIVERGENCE = (EventKind.NONFINITE_LOSS, EventKind.NONFINITE_STATE)
"""What a divergence ends in."""

_AFTER_A_JUMP = (
    "It began after the gradient's jump at step {step}{batch}: look at that batch first, and begin anew with {{clip}}, "
    "which holds such a step. If the batch is in order, lower the learning rate."
)


LEAP = 100.0
"""Times the one before, to which a loss may go within one step: by one batch, or by a step before
it that was too long.
"""

_WITHIN_ONE_STEP = (
    "That batch may have begun it, or the step before it was too long. Look at the batch first; if it is out of the ordinary, "
    "begin anew without it, or with {clip}. Else begin anew with a learning rate ten times lower, or let it rise slowly (warm-up)."
)


@dataclass(slots=True)
class _Level:
    """How far the loss must have risen, and how much the weights must have grown with it.

    Args:
        far: times its first value, from which on a loss is far above the start;
            up to ``near`` times it is near.
        growth: times their norm at the start that half of the weight matrices have grown to; in a
            healthy training that takes thousands of steps.
        last_near: number of the last step whose loss was near the start.
        far_since: number of the step from which on every loss has been far;
            ``began``: the same in optimizer steps.
    """

    far: float
    near: float
    growth: float
    last_near: int = 0
    far_since: int | None = None
    began: int = 0

    def see(self, risen: float, number: int, step: int) -> None:
        """Take in one step's loss, in times its first value."""
        if risen <= self.near:
            self.last_near = number
        if risen <= self.far:
            self.far_since = None
        elif self.far_since is None:
            self.far_since, self.began = number, step

    def is_suspicious(self, number: int) -> bool:
        """Whether the loss rose fast, and stayed."""
        since = self.far_since
        return since is not None and since - self.last_near <= FAST and STAYS <= number - since + 1 <= SOON


class DivergenceDetector:
    """Takes the loss of every step, and the weights' norms of a few; one
    event until the loss has come back.

    Neither alone would do. A loss may rise by its own nature (returns in reinforcement learning, an
    annealed term, an opponent that gets better), weights grow while they learn. A step that is too
    long does both at once, and soon.

    Args:
        weights: norm of each weight matrix before training, by a key that stays.
        usual: the same, or what is usual where a matrix begins far under that: growing up to it is
            no sign of divergence. None takes ``weights``.
    """

    def __init__(self, weights: Mapping[int, float], usual: Mapping[int, float] | None = None) -> None:
        self._start = {key: norm for key, norm in weights.items() if 0 < norm < math.inf}
        self._usual = self._start if usual is None else {key: usual[key] for key in self._start if key in usual}
        self._levels = (_Level(far=10.0, near=3.0, growth=5.0), _Level(far=3.0, near=2.0, growth=10.0))
        self._first: tuple[float, float] | None = None  # loss and gradient norm
        self._last = (0.0, 0.0)
        self._leap: tuple[float, float, Moment] | None = None  # within one step: from where, to where, when
        self._steps = self._back = self._seen_last = 0
        self._told: Event | None = None

    def see(self, loss: float, norm: float, moment: Moment) -> Event | None:
        """Take in one step's loss and gradient norm. Returns the record
        of a divergence that has ended.
        """
        if not math.isfinite(loss):
            return None
        if self._first is None:
            if loss:
                self._first = self._last = (loss, norm)
            return None
        self._steps += 1
        before = self._last[0]
        if self._risen(before) <= self._levels[0].far and self._risen(loss) >= LEAP * max(self._risen(before), 1.0):
            self._leap = before, loss, moment
        self._last, self._seen_last = (loss, norm), moment.step
        for level in self._levels:
            level.see(self._risen(loss), self._steps, moment.step)
        lower = self._levels[-1]
        if self._told is None or lower.far_since is not None or self._risen(loss) > lower.near:
            self._back = 0
            return None
        self._back += 1
        return self._ended(loss, moment) if self._back == STAYS else None

    def is_suspicious(self) -> bool:
        """Whether the loss is such that the weights are worth a look."""
        return self._told is None and any(level.is_suspicious(self._steps) for level in self._levels)

    def __call__(self, weights: Mapping[int, float], moment: Moment, jump: Event | None = None) -> Event | None:
        """The event, if the weights have grown too.

        Args:
            weights: their norms now, by the keys of the start.
            jump: the last jump of the gradient's norm that was told.
        """
        growth = _growth(self._usual, weights)
        for level in self._levels:
            if level.is_suspicious(self._steps) and growth >= level.growth:
                self._told = self._event(level, _growth(self._start, weights), moment, jump)
                return self._told
        return None

    def explain(self, event: Event, weights: Callable[[], Mapping[int, float]]) -> Event:
        """A loss or a state that is not finite, and of which no more is known, with the divergence
        before it as its cause; others as they are. A loss that rose a thousandfold in the few steps
        before needs no look at the weights.

        Args:
            weights: their norms now, by the keys of the start.
        """
        if event.kind not in _OF_DIVERGENCE or not _is_of_kind(event) or event.parameter:
            return event
        if event.kind == EventKind.NONFINITE_STATE:
            return self._with_grown_weights(event, weights())
        if self._told is not None:
            before = f"The training had diverged before, at step {self._told.step}."
            return replace(event, message=f"{event.message} {before}", remedy=self._told.remedy)
        if self._first is None or self._risen(self._last[0]) < CLEAR:
            return self._with_grown_weights(event, weights())
        before = (
            f"The training had diverged: the loss rose from {self._first[0]:.4g} at the start to {self._last[0]:.4g} "
            f"at step {self._seen_last}."
        )
        return replace(event, message=f"{event.message} {before}", remedy=EventKind.DIVERGED.remedy)

    def _with_grown_weights(self, event: Event, weights: Mapping[int, float]) -> Event:
        """With the first few steps as the cause, where they have carried the weights far off."""
        growth, steps = _growth(self._usual, weights), self._steps + (self._first is not None)
        if not 0 < steps <= FAST or not growth >= self._levels[0].growth:
            return event
        grown = f"to {growth:.3g} times their norm or more" if growth < math.inf else "so far that their norm overflows"
        within = "by the first step: it was" if steps == 1 else f"within {steps} steps: these, or one of them, were"
        said = f"Half of the weight matrices have grown {grown} {within} too long."
        return replace(event, message=f"{event.message} {said}", remedy=EventKind.DIVERGED.remedy)

    def _event(self, level: _Level, growth: float, moment: Moment, jump: Event | None) -> Event:
        assert self._first is not None
        assert level.far_since is not None
        (first, norm_then), (loss, norm) = self._first, self._last
        steps = self._steps - level.far_since + 1
        jumped = jump is not None and 0 <= level.began - jump.step <= STAYS
        leap = "" if jumped else self._within_one_step(level)
        return moment.event(
            EventKind.DIVERGED,
            value=loss,
            threshold=first,
            severity=Severity.CRITICAL if self._risen(loss) >= CLEAR else None,
            remedy=_after(jump) if jump is not None and jumped else _WITHIN_ONE_STEP * bool(leap),
            detail=f"It has been more than {level.far:g} times as high for {steps} steps. Half of the weight matrices have grown to "
            f"{growth:.3g} times their norm or more; the gradient norm went from {norm_then:.3g} to {norm:.3g}.{leap}",
        )

    def _within_one_step(self, level: _Level) -> str:
        """Where and how far the loss leapt as it came to stay high; empty if it did not."""
        if self._leap is None or not 0 <= level.began - self._leap[2].step <= STAYS:
            return ""
        before, after, at = self._leap
        return (
            f" The loss went from {before:.4g} to {after:.4g} within one step, at step {at.step}{_batch(at.batch_idx)}."
        )

    def _ended(self, loss: float, moment: Moment) -> Event:
        assert self._told is not None
        since, self._told = self._told.step, None
        return moment.event(
            EventKind.DIVERGED,
            value=loss,
            severity=Severity.INFO,
            action=ENDED,
            message=f"The loss, far above its start at step {since}, has come back to {loss:.4g} by step {moment.step}.",
        )

    def _risen(self, loss: float) -> float:
        """How high it is, in times its first value; of a negative one, by how
        many times its size it has risen.
        """
        assert self._first is not None
        first = self._first[0]
        return loss / first if first > 0 else (loss - first) / -first


def _is_of_kind(event: Event) -> bool:
    """Whether no remedy of its own is known, with whatever tools at hand."""
    return event.remedy in [event.kind.remedy_with(tools_at_hand(in_loop=there)) for there in (False, True)]


def _after(jump: Event) -> str:
    return _AFTER_A_JUMP.format(step=jump.step, batch=_batch(jump.batch_idx))


def _batch(index: int | None) -> str:
    return "" if index is None else f" (batch {index})"


def _growth(start: Mapping[int, float], now: Mapping[int, float]) -> float:
    """The median over the matrices of how many times as large they are."""
    grown = [now[key] / norm for key, norm in start.items() if key in now]
    return median(grown) if grown else 0.0
