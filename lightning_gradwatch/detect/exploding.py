"""A gradient that grows on its way back through time, more than it ordinarily does in this run."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np

from lightning_gradwatch import arguments
from lightning_gradwatch.detect.baseline import Baseline
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.remedy import exploding_remedy
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.profile import Profile, growth_rate
from lightning_gradwatch.thresholds import (
    CALM_SAMPLES,
    ENOUGH_EVIDENCE,
    EXPLODING_FACTOR,
    ORDINARY_HISTORY,
    ORDINARY_SPREAD,
)

GROWTH_WINDOW = 32
"""Sampled steps that the baseline remembers."""

LEAST_GROWTH_FACTOR = 10.0
"""However even a run is, less than this many times its ordinary growth is ordinary."""


class ExplodingDetector:
    """Reports a layer whose gradient grows through time beyond what is ordinary in
    this run; one event an episode.

    The growth of a sample is the largest value of its lagged gradient, dimensionless. The bound is
    learned for each place from the samples that were quiet, and never lies under ``factor``. A
    sample over the bound adds log growth/log bound to the evidence, one under it clears it, and an
    episode begins at 2: so no single odd batch makes an event, unless it is beyond doubt.

    Args:
        factor: the least bound, dimensionless, > 1.

    Raises:
        ValueError: ``factor`` is not over 1.
    """

    def __init__(self, factor: float = EXPLODING_FACTOR) -> None:
        remedy = f"The default is {EXPLODING_FACTOR:g}."
        self.factor = arguments.number("factor", factor, lambda given: given > 1, "> 1", remedy)
        self._ordinary: dict[Hashable, Baseline] = {}
        self._evidence: dict[Hashable, float] = {}
        self._suspected: dict[
            Hashable, tuple[Event, float]
        ] = {}  # place → the event of its last sample, if it was over its bound
        self._episodes = Episodes(CALM_SAMPLES)

    def bound(self, profile: Profile) -> float:
        """The growth that an ordinary sample of this place stays under."""
        ordinary = self._ordinary.get((*profile.place, profile.call))
        learned = None if ordinary is None else ordinary.bound()
        return self.factor if learned is None else max(self.factor, learned)

    def suspects(self, profile: Profile) -> bool:
        """Whether this sample is over its bound, whether or not that is enough for an event; not so
        in an episode, of which all is said.
        """
        return not self._episodes.is_open(profile.place) and _growth(profile) > self.bound(profile)

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Returns the event of an episode that begins here, or
        the record of one that ends here.
        """
        growth = _growth(profile)
        if not 0 < growth < math.inf:
            return None
        bound, place, key = self.bound(profile), profile.place, (*profile.place, profile.call)
        if self._episodes.is_open(place):
            return self._episodes.see(place, growth, moment, calm=growth < math.sqrt(bound))
        if growth <= bound:
            self._evidence[key] = 0.0
            self._suspected.pop(place, None)
            self._ordinary.setdefault(key, _baseline()).remember(growth)
            return None
        event = _event(profile, growth, bound, moment)
        self._evidence[key] = self._evidence.get(key, 0.0) + math.log(growth) / math.log(bound)
        if self._evidence[key] < ENOUGH_EVIDENCE:
            self._suspected[place] = event, growth
            return None
        self._evidence[key] = 0.0
        return self._begin(place, event, growth)

    def confirmed(self) -> list[Event]:
        """Numbers stopped being finite: what the last sample made suspicious is beyond
        doubt, and its episodes begin.
        """
        return [self._begin(place, *suspected) for place, suspected in list(self._suspected.items())]

    def _begin(self, place: Hashable, event: Event, growth: float) -> Event:
        self._suspected.pop(place, None)
        return self._episodes.begin(place, event, growth)

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return self._episodes.finish(moment)


def _baseline() -> Baseline:
    return Baseline(
        window=GROWTH_WINDOW, history=ORDINARY_HISTORY, spread=ORDINARY_SPREAD, least_factor=LEAST_GROWTH_FACTOR
    )


def _growth(profile: Profile) -> float:
    """The largest lagged gradient; 0 where there is nothing to judge: another state, no lags,
    or numbers that are not finite.
    """
    lagged = profile.lagged()
    if not profile.primary or not len(lagged) or not np.isfinite(lagged).all():
        return 0.0
    return float(lagged.max())


def _event(profile: Profile, growth: float, bound: float, moment: Moment) -> Event:
    lagged = profile.lagged()
    place = outgrown(profile, bound)
    rate = growth_rate(lagged[: int(np.argmax(lagged)) + 1])
    speed = "" if rate is None else f" ({rate:+.3g} nats per timestep)"
    cut = " It ends where the state comes in, which has no graph." if profile.truncated else ""
    return moment.event(
        EventKind.EXPLODING_HIDDEN_GRADIENT,
        module=profile.module,
        layer=profile.layer,
        direction=profile.direction,
        state=profile.state,
        timestep=None if place is None else place[0],
        sequence=None if place is None else place[1],
        value=growth,
        threshold=bound,
        detail=f"It outgrows the bound {count_of(int(np.argmax(lagged > bound)), 'timestep')} back from the loss and is largest "
        f"{int(np.argmax(lagged))} back, in sequences of {profile.timesteps}{speed}.{cut}",
        remedy=exploding_remedy(profile, lagged, in_total=place is not None),
    )


def outgrown(profile: Profile, bound: float) -> tuple[int, int] | None:
    """``(timestep, sequence)``: going back from the loss, where the total gradient first exceeds
    ``bound`` times that with which the way back began, in the sequence where it grows most. None if
    the total gradient of none does.
    """
    worst: tuple[float, int, int] | None = None
    for row, (sequence, length) in enumerate(zip(profile.sequences, profile.lengths, strict=True)):
        norms = profile.total[row, :length]
        back = norms if profile.direction == "reverse" else norms[::-1]  # nearest to the loss first
        reached = np.flatnonzero(back)
        if not len(reached) or not np.isfinite(back).all():
            continue
        first = int(reached[0])
        ratio = back[first:] / back[first]
        over = np.flatnonzero(ratio > bound)
        if len(over) and (worst is None or ratio.max() > worst[0]):
            step = first + int(over[0])
            worst = float(ratio.max()), step if profile.direction == "reverse" else length - 1 - step, sequence
    return None if worst is None else worst[1:]
