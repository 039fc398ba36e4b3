"""A gradient that dies on its way back through time, long before the sequence begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from lightning_gradwatch import arguments
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.remedy import vanishing_remedy
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.profile import HORIZON_RATIO, Profile, gradient_horizon, growth_rate

SAMPLES = 3
"""Vanishing is judged from this many sampled steps in a row, never from one."""

VANISHING_SHARE = 0.5
"""A horizon shorter than this share of the sequence is vanishing."""

CALM_SHARE = 0.6
"""An episode ends when the horizon is this share of the sequence or more: it takes less to go on than to begin."""

CALM_SAMPLES = 2
"""In so many samples in a row."""


def is_vanishing(horizon: float, timesteps: int) -> bool:
    """Whether a horizon, which the sequence did not cut off, is short beside the sequence; both in timesteps."""
    return horizon < VANISHING_SHARE * timesteps


@dataclass(slots=True)
class _Track:
    """The last horizons of one call of one place, in a row, all of them short; and the furthest that was not."""

    horizons: deque[int]
    starved: deque[int]
    furthest: int | None = None


class VanishingDetector:
    """Reports a layer whose gradient horizon stays short over several samples; one event an episode.

    A horizon that the sequence cut off (censored) never counts. Nor does one that grows at a pace at which it will be long after as
    many samples again: such a network is learning to remember.

    The event is a warning where timesteps *starve*: going back from the loss, the total gradient of the first timesteps stays under 1 %
    of the largest, so that nothing is learned from what is fed there. Where each timestep has a loss of its own close by (a language
    model), or where the gradient reached further earlier in the run (what has been learned needs little gradient), it is a note.

    Args:
        samples: how many sampled steps in a row.

    Raises:
        ValueError: ``samples`` is under 1.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = arguments.whole("samples", samples, f"The default is {SAMPLES}.")
        self._tracks: dict[Hashable, _Track] = {}
        self._episodes = Episodes(CALM_SAMPLES, falling=True)
        self._begun_by: dict[Hashable, int] = {}

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Returns the event of an episode that begins here, or the record of one that ends here."""
        lagged = profile.lagged()
        if profile.state != "h" or len(lagged) < 2 or not np.isfinite(lagged).all():
            return None
        place = profile.place
        if self._episodes.is_open(place) and self._begun_by[place] != profile.call:
            return None  # one event for all calls of a place
        track = self._tracks.setdefault((*place, profile.call), self._new_track())
        horizon = gradient_horizon(lagged)
        reach = horizon.lag or 0
        short = not horizon.censored and is_vanishing(reach, profile.timesteps)
        if not short:
            track.horizons.clear()
            track.starved.clear()
            track.furthest = max(track.furthest or 0, reach)
        if self._episodes.is_open(place):
            return self._go_on(profile, reach, horizon.censored, moment)
        if not short:
            return None
        track.horizons.append(reach)
        track.starved.append(starved(profile))
        return self._begin(profile, track, growth_rate(lagged), moment)

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return self._episodes.finish(moment)

    def _go_on(self, profile: Profile, reach: int, censored: bool, moment: Moment) -> Event | None:
        calm = censored or reach >= CALM_SHARE * profile.timesteps
        ended = self._episodes.see(profile.place, float(reach), moment, calm=calm)
        if ended is None or not (censored and profile.truncated):
            return ended
        now = f"Now the gradient outlives the segments of {profile.timesteps} timesteps: their length is the limit."
        return replace(ended, message=f"{ended.message} {now}", detail="")

    def _new_track(self) -> _Track:
        return _Track(deque(maxlen=self.samples), deque(maxlen=self.samples))

    def _begin(self, profile: Profile, track: _Track, rate: float | None, moment: Moment) -> Event | None:
        recent = track.horizons
        if len(recent) < self.samples or not (rate is None or rate < 0):
            return None
        if not is_vanishing(recent[-1] ** 2 / max(recent[0], 1), profile.timesteps):  # by the same factor again
            return None
        reach, hungry = float(median(recent)), int(median(track.starved))
        self._begun_by[profile.place] = profile.call
        event = moment.event(
            EventKind.VANISHING_HIDDEN_GRADIENT,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state="h",
            value=reach,
            threshold=VANISHING_SHARE * profile.timesteps,
            severity=Severity.WARNING if hungry and track.furthest is None else Severity.INFO,
            detail=_detail(profile, len(recent), rate, hungry, track.furthest),
            remedy=vanishing_remedy(profile, profile.lagged()),
        )
        return self._episodes.begin(profile.place, event, reach)


def _detail(profile: Profile, samples: int, rate: float | None, hungry: int, furthest: int | None) -> str:
    speed = "" if rate is None else f", growth rate {rate:+.3g} nats per timestep"
    parts = [f"The sequences have {profile.timesteps}; so it was in {samples} samples in a row{speed}."]
    if profile.truncated:
        parts.append(
            "The state that comes in is cut off from its past, as in truncated backpropagation; the horizon is the limit here, not their "
            f"length: segments longer than {profile.timesteps} would teach nothing more."
        )
    if hungry:
        parts.append(
            f"The {hungry} timesteps furthest from the loss get under 1 % of the largest gradient: nothing is learned from them."
        )
    else:
        parts.append(
            "Every timestep has a loss near enough to learn from; it matters if the task needs a longer memory."
        )
    if furthest is not None:
        parts.append(f"Earlier it reached {furthest}; if the loss is low by now, it was enough.")
    return " ".join(parts)


def starved(profile: Profile) -> int:
    """How many timesteps, from the sequence's far end on, get under 1 % of the largest total gradient; median over sequences.

    The far end is where a direction's own first step is. Timesteps past the last one that the loss reaches are no part of it: no
    gradient is due there.
    """
    counts: list[int] = []
    for row, length in zip(profile.total, profile.lengths, strict=True):
        own = row[:length] if profile.direction == "forward" else row[:length][::-1]
        largest = own.max(initial=0.0)
        if 0 < largest < np.inf:
            enough = np.flatnonzero(own >= HORIZON_RATIO * largest)
            counts.append(int(enough[0]))
    return int(median(counts)) if counts else 0
