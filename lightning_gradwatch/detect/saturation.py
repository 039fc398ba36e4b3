"""Gates so far saturated that no gradient reaches their weights: nothing is learned
there, whatever flows through time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.episode import Episodes
from lightning_gradwatch.detect.saturation_words import Cause, cause_of, details, remedy
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.thresholds import BLOCKED_SHARE, LEARNED_LOSS, SATURATION_SAMPLES, SUSPICIOUS_SHARE

MOST = 0.8
"""At least one of the gates that decide is saturated on this share of units and timesteps."""


def bound(profile: Profile) -> float:
    """Under which share of the gradient that the loss sends learning counts as blocked."""
    saturation = profile.saturation
    return SUSPICIOUS_SHARE if saturation is not None and cause_of(saturation) is Cause.INPUTS else BLOCKED_SHARE


def blocks_learning(profile: Profile) -> bool:
    """Whether the gates of this profile are saturated so far that their weights learn nothing."""
    share, saturation = profile.gate_gradient, profile.saturation
    if share is None or not share < bound(profile):
        return False
    if saturation is None:  # a cell of one's own, whose weights get nothing at all
        return share == 0
    return any(gate.decides and gate.saturated >= MOST for gate in saturation.gates)


@dataclass(slots=True)
class _Track:
    """One call of one place: how many samples in a row were blocked, whether one
    ever was not, and the first loss.
    """

    first_loss: float | None
    in_a_row: int = 0
    learned: bool = False


class SaturationDetector:
    """Reports a layer whose gates are saturated nearly everywhere; one event an episode.

    Gates that close while the loss falls are what a network may well
    have learned, and are no event.
    """

    def __init__(self) -> None:
        self._tracks: dict[Hashable, _Track] = {}
        self._episodes = Episodes(SATURATION_SAMPLES, falling=True)
        self._begun_by: dict[Hashable, int] = {}

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Returns the event of an episode that begins or ends here."""
        loss = moment.loss
        place, share = profile.place, profile.gate_gradient
        if not profile.primary or share is None or np.isinf(profile.total_max()).any():
            return None
        if self._episodes.is_open(place):
            if self._begun_by[place] != profile.call:
                return None  # one event for all calls of a place
            return self._episodes.see(place, share, moment, calm=not blocks_learning(profile))
        track = self._tracks.setdefault((*place, profile.call), _Track(loss))
        if not blocks_learning(profile):
            track.in_a_row, track.learned = 0, True
            return None
        track.in_a_row += 1
        if track.in_a_row < SATURATION_SAMPLES or (track.learned and _has_fallen(loss, track.first_loss)):
            return None
        self._begun_by[place] = profile.call
        return self._episodes.begin(place, _event(profile, share, moment, track), share)

    def finish(self, moment: Moment) -> list[Event]:
        """The records of what still goes on when training ends."""
        return self._episodes.finish(moment)


def _event(profile: Profile, share: float, moment: Moment, track: _Track) -> Event:
    unsure = track.learned and track.first_loss is None  # it may have been learned
    return moment.event(
        EventKind.SATURATED_GATES,
        module=profile.module,
        layer=profile.layer,
        direction=profile.direction,
        value=share,
        threshold=bound(profile),
        severity=Severity.INFO if unsure else Severity.WARNING,
        detail=details(profile.saturation),
        remedy=remedy(profile.saturation, at_first=not track.learned),
    )


def _has_fallen(loss: float | None, first: float | None) -> bool:
    return loss is not None and first is not None and math.isfinite(loss) and loss < LEARNED_LOSS * first and first > 0
