"""An anomaly from its begin to its end: one event when it begins, one record when it
is over, however long it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from lightning_gradwatch.events import ENDED, ONGOING, Event, EventKind, Moment, Severity
from lightning_gradwatch.plain import count_of

_WORDS: dict[EventKind, tuple[str, Callable[[float], str]]] = {
    EventKind.EXPLODING_GRADIENT: ("Jump of the gradient norm", "it was largest, {:.3g},".format),
    EventKind.EXPLODING_HIDDEN_GRADIENT: ("Explosion through time", "the growth was largest, {:.3g}-fold,".format),
    EventKind.SATURATED_GATES: ("Saturation", "the share that reached the gates was smallest, {:.2g},".format),
    EventKind.VANISHING_HIDDEN_GRADIENT: (
        "Vanishing",
        lambda horizon: f"the horizon was shortest, {count_of(round(horizon), 'timestep')},",
    ),
}
"""What goes on, and its peak, in the kind's unit."""


@dataclass(slots=True)
class Episode:
    """What goes on: the event of its begin, and the worst that was seen since. ``calm`` counts
    quiet samples in a row; ``lost`` is the step from which on no sample was finite.
    """

    begin: Event
    peak: float
    peak_step: int
    calm: int = 0
    lost: int | None = None

    @property
    def still(self) -> str:
        """Since when it goes on at the end of training, as far as that is known."""
        if self.lost is None:
            return f"since step {self.begin.step}, not over when training ended"
        return f"since step {self.begin.step}, until nothing was finite any more at step {self.lost}"


class Episodes:
    """The open episodes of one detector, by whatever tells their places apart.

    An episode ends after ``end_after`` calm samples in a row; a sample that is neither calm nor
    worse keeps it open (hysteresis: it takes less to go on than to begin).

    Args:
        end_after: ≥ 1.
        falling: the worst value is the smallest one.
    """

    def __init__(self, end_after: int, *, falling: bool = False) -> None:
        self._end_after, self._falling = end_after, falling
        self._open: dict[Hashable, Episode] = {}

    def is_open(self, key: Hashable) -> bool:
        """Whether something goes on there."""
        return key in self._open

    def peak(self, key: Hashable) -> float:
        """The worst value since the begin of the one that is open there."""
        return self._open[key].peak

    def begin(self, key: Hashable, event: Event, value: float) -> Event:
        """Open one, and return the event of its begin."""
        self._open[key] = Episode(event, value, event.step)
        return event

    def see(self, key: Hashable, value: float, moment: Moment, *, calm: bool) -> Event | None:
        """Take in another sample of an open episode. Returns the
        record of its end, if this is it.
        """
        episode = self._open[key]
        episode.lost = None
        if value < episode.peak if self._falling else value > episode.peak:
            episode.peak, episode.peak_step = value, moment.step
        episode.calm = episode.calm + 1 if calm else 0
        if episode.calm < self._end_after:
            return None
        del self._open[key]
        return _record(episode, moment, ENDED, f"from step {episode.begin.step} to step {moment.step}")

    def recurs(self, key: Hashable, moment: Moment, times: int) -> Event:
        """End one whose anomaly comes and goes; returns the record of it."""
        episode = self._open.pop(key)
        when = (
            f"from step {episode.begin.step} to step {moment.step}: it came and went {times} times, so it is part of "
            "this run, and is told no more"
        )
        return _record(episode, moment, ENDED, when)

    def lose(self, key: Hashable, moment: Moment) -> None:
        """Take in a sample that is not finite, of which nothing can be said."""
        if key in self._open and self._open[key].lost is None:
            self._open[key].lost = moment.step

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over: a record of each episode that still goes on."""
        still = [_record(episode, moment, ONGOING, episode.still) for episode in self._open.values()]
        self._open.clear()
        return still


def _record(episode: Episode, moment: Moment, action: str, when_it_was: str) -> Event:
    begin = episode.begin
    what, peak = _WORDS[begin.kind]
    return dataclasses.replace(
        begin,
        step=moment.step,
        epoch=moment.epoch,
        batch_idx=moment.batch_idx,
        rank=moment.rank,
        detail="",
        severity=Severity.INFO,
        action=action,
        value=episode.peak,
        message=f"{what} of {begin.place} {when_it_was}; {peak(episode.peak)} at step {episode.peak_step} "
        f"(bound {begin.threshold:.3g}).",
    )
