"""A gradient that dies on its way back through time, long before the sequence begins."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from lightning_gradwatch import arguments
from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.remedy import LOST_REMEDY, vanishing_remedy
from lightning_gradwatch.detect.saturation import blocks_learning
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.growth import levels_off, rate_in_words
from lightning_gradwatch.plain import count_of, shown_share
from lightning_gradwatch.profile import Profile, gradient_horizon, growth_rate
from lightning_gradwatch.thresholds import (
    CALM_SAMPLES,
    CALM_SHARE,
    LAST_SAMPLES,
    LOW_LOSS,
    NOTHING_LOST,
    RISEN_LOSS,
    SEVERAL,
    VANISHING_SHARE,
)


def is_vanishing(horizon: float, timesteps: int) -> bool:
    """Whether a horizon, which the sequence did not cut off, is short beside
    the sequence; both in timesteps.
    """
    return horizon < VANISHING_SHARE * timesteps


@dataclass(slots=True)
class _Track:
    """The last horizons of one call of one place, in a row, all of them short, and how long the
    sequences were; and the furthest that was not.
    """

    horizons: deque[int]
    starved: deque[int]
    lengths: deque[int]
    furthest: int | None = None
    first_loss: float | None = None
    last: tuple[Profile, Moment] | None = None  # of them

    def clear(self) -> None:
        """None is short any more."""
        for kept in (self.horizons, self.starved, self.lengths):
            kept.clear()


class VanishingDetector:
    """Reports a layer whose gradient horizon stays short over several
    samples; one event an episode.

    A horizon that the sequence cut off (censored) never counts. Nor does one that grows at a pace
    at which it will be long after as many samples again: such a network is learning to remember.

    The event is a warning where timesteps *starve*: going back from the loss, the total gradient of
    the first timesteps stays under 1 % of the largest, so that nothing is learned from what is fed
    there. Where each timestep has a loss of its own close by (a language model), where the gradient
    reached further earlier in the run and the loss has not risen since (what has been learned needs
    little gradient), or where the loss is low by now, it is a note. Of gates that are saturated
    another detector tells: what is said here would not help them.

    Args:
        samples: how many sampled steps in a row.

    Raises:
        ValueError: ``samples`` is under 1.
    """

    def __init__(self, samples: int = SEVERAL) -> None:
        self.samples = arguments.whole("samples", samples, f"The default is {SEVERAL}.")
        self._tracks: dict[Hashable, _Track] = {}
        self._lengths: dict[Hashable, deque[int]] = {}
        self._episodes = Episodes(CALM_SAMPLES, falling=True)
        self._begun_by: dict[Hashable, int] = {}

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Returns the event of an episode that begins here, or the record
        of one that ends here. Samples that follow up an anomaly are left out: it is judged over
        time.
        """
        lagged = profile.lagged()
        place = profile.place
        if moment.follow_up or not profile.primary or len(lagged) < 2:
            return None
        if not np.isfinite(lagged).all():
            self._episodes.lose(place, moment)
            return None
        if self._episodes.is_open(place) and self._begun_by[place] != profile.call:
            return None  # one event for all calls of a place
        track = self._tracks.setdefault((*place, profile.call), self._new_track(moment.loss))
        horizon = gradient_horizon(lagged)
        reach = horizon.lag or 0
        due = self._due(profile, fell=not horizon.censored)
        short = not horizon.censored and is_vanishing(reach, due)
        if not short:
            track.last = None
            track.clear()
            track.furthest = max(track.furthest or 0, reach)
        if self._episodes.is_open(place):
            return self._go_on(profile, due, reach, horizon.censored, moment)
        if not short:
            return None
        if blocks_learning(profile):  # no sample of a gradient that vanishes, and none of those in a row
            track.last = None
            track.clear()
            return None
        track.horizons.append(reach)
        track.starved.append(profile.starved())
        track.lengths.append(profile.timesteps)
        track.last = profile, moment
        if is_vanishing(reach**2 / max(track.horizons[0], 1), due):  # by the same factor again
            return self._begin(profile, track, moment)
        return None

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over: horizons that were short to the end, though they grew; and the
        records of what still goes on.
        """
        told: list[Event | None] = []
        for track in self._tracks.values():
            if track.last is not None and not self._episodes.is_open(track.last[0].place):
                told.append(self._begin(track.last[0], track, track.last[1]))
        self._tracks.clear()
        return [*filter(None, told), *self._episodes.finish(moment)]

    def _due(self, profile: Profile, *, fell: bool) -> int:
        """The timesteps that a horizon is held against: where sequences differ in length, no more
        than the middle one of those lately has in which the gradient fell under 1 %. How long a
        single one was may be chance, as where a state is reset at random.
        """
        lately = self._lengths.setdefault(profile.place, deque(maxlen=LAST_SAMPLES))
        if fell:
            lately.append(profile.due_timesteps)
        ordered = sorted(lately)
        return min([profile.due_timesteps, *ordered[(len(ordered) - 1) // 2 :][:1]])

    def _go_on(self, profile: Profile, due: int, reach: int, censored: bool, moment: Moment) -> Event | None:
        """A horizon that was cut off is longer than what was seen of it: never the shortest, and no
        sign of an end where it could not be followed far enough to tell, as in a short sequence.
        """
        calm = reach + censored >= CALM_SHARE * due
        if censored and not (calm and reach >= self._episodes.peak(profile.place)):
            return None
        ended = self._episodes.see(profile.place, math.inf if censored else float(reach), moment, calm=calm)
        if ended is None or not (censored and profile.truncated and reach + 1 >= profile.timesteps):
            return ended
        now = (
            f"Now the gradient outlives the {count_of(profile.timesteps, 'timestep')}. If the state that comes in is carried over, "
            "as between segments, their length is the limit."
        )
        return replace(ended, message=f"{ended.message} {now}", detail="")

    def _new_track(self, loss: float | None) -> _Track:
        horizons, starved, lengths = (deque[int](maxlen=self.samples) for _ in range(3))
        return _Track(horizons, starved, lengths, first_loss=loss)

    def _begin(self, profile: Profile, track: _Track, moment: Moment) -> Event | None:
        recent, loss, rate = track.horizons, moment.loss, growth_rate(profile.lagged())
        if track.furthest is not None and is_vanishing(track.furthest + 1, profile.due_timesteps):
            track.furthest = None  # so far reaches a short horizon too, or a short sequence
        if len(recent) < self.samples or not (rate is None or rate < 0):
            return None
        reach, hungry = recent[-1], track.starved[-1]
        low, lost = low_loss(loss, track.first_loss), _lost(loss, track)
        starves = hungry and median(track.starved)
        self._begun_by[profile.place] = profile.call
        event = moment.event(
            EventKind.VANISHING_HIDDEN_GRADIENT,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state=profile.state,
            value=float(reach),
            threshold=VANISHING_SHARE * self._due(profile, fell=False),
            severity=Severity.INFO if low or not starves or (track.furthest and not lost) else Severity.WARNING,
            detail=_detail(profile, track, rate, hungry, low, lost),
            remedy=LOST_REMEDY if lost else _remedy(profile, low),
        )
        return self._episodes.begin(profile.place, event, float(reach))


def _lost(loss: float | None, track: _Track) -> str:
    """That the loss has risen since the gradient reached further, in words; nothing
    where it has not, or is not known.
    """
    first = track.first_loss
    if track.furthest is None or loss is None or first is None or not loss > RISEN_LOSS * first > 0:
        return ""
    return f"Earlier it reached {track.furthest}, and the loss has risen since, to {loss:.2g} from {first:.2g}."


def low_loss(loss: float | None, first: float | None) -> str:
    """That the loss is low by now, in words; nothing where it is not, or not known."""
    if loss is None or first is None or not 0 <= loss < LOW_LOSS * first < math.inf:
        return ""
    return f"The loss is down to {loss:.2g} from {first:.2g}: what the task needs may well be within reach."


def _remedy(profile: Profile, low: str) -> str:
    return ("If the task needs a longer memory: " if low else "") + vanishing_remedy(profile, profile.lagged())


def _detail(profile: Profile, track: _Track, rate: float | None, hungry: int, low: str, lost: str) -> str:
    recent, furthest = list(track.horizons), track.furthest
    speed = "" if rate is None else f" ({rate_in_words(rate, recent[-1])})"
    shortest, longest = min(recent), max(recent)
    before = "" if shortest == longest else f", after {shortest} to {longest}"
    parts = [low, lost, *_crossed(profile)]
    parts += [
        f"The sequences have {_lengths(track.lengths)}. Seen in {len(recent)} samples in a row{before}{speed}.",
        *_left_out(profile),
        *_behind(profile),
    ]
    if profile.truncated:
        parts.append(_cut(profile))
    if hungry:
        get = "timestep furthest from the loss gets" if hungry == 1 else "timesteps furthest from the loss get"
        parts.append(
            f"The {hungry:,} {get} under 1 % of the largest gradient"
            + ("." if low or levels_off(rate, profile.real_timesteps) else ": nothing is learned from them.")
        )
    else:
        parts.append(
            "Every timestep gets 1 % of the largest gradient or more: it matters if the task needs a longer memory."
        )
    if furthest is not None and not lost:
        parts.append(f"Earlier it reached {furthest}; if the loss is low by now, it was enough.")
    return " ".join(filter(None, parts))


def _lengths(lengths: Collection[int]) -> str:
    shortest, longest = min(lengths), max(lengths)
    return f"{longest}" if shortest == longest else f"{shortest} to {longest}"


def _cut(profile: Profile) -> str:
    """What lies beyond the cut of truncated backpropagation, where that was measured."""
    if profile.cut_share is None:
        why = f": {profile.cut_unknown}" if profile.cut_unknown else ""
        return (
            "The state that comes in has no graph. If it is carried over, as in truncated backpropagation, how much of the gradient "
            f"lies beyond the cut is not known here{why}."
        )
    said = (
        "The state is carried over. Had the gradient gone on into the segment before, "
        f"{shown_share(profile.cut_share)} of it over both would lie there"
    )
    if profile.cut_share < NOTHING_LOST:
        return f"{said}: the horizon is the limit here, and segments longer than {profile.timesteps} would add next to nothing."
    return f"{said}."


def _crossed(profile: Profile) -> list[str]:
    """That the gradient has to cross what looks like padding."""
    ends, side = profile.ends, "last" if profile.direction == "forward" else "first"
    if ends.padded:
        padded = count_of(ends.padded, "timestep")
        return [
            f"In most sequences the {side} {padded} (median) have equal inputs, as padding has, and the loss sits behind "
            "them: the gradient has to cross them before it reaches any other input."
        ]
    return []


def _left_out(profile: Profile) -> list[str]:
    if profile.real_timesteps < max(profile.lengths, default=0):
        return [
            f"Only {profile.real_timesteps} of them count here: at the others the inputs are equal, as in padding, and nothing is lost."
        ]
    return []


def _behind(profile: Profile) -> list[str]:
    behind = profile.real_timesteps - profile.due_timesteps
    if not behind:
        return []
    lie = "lies" if behind == 1 else "lie"
    return [f"{count_of(behind, 'timestep')} {lie} behind the last one that the loss reads, where no gradient is due."]
