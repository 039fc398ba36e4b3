"""The detectors that judge a fit's profiles: the built-in ones, and
the user's own behind a guard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from lightning_gradwatch.detect import (
    Detector,
    ExplodingDetector,
    OneSequenceDetector,
    SaturationDetector,
    ScanMismatchDetector,
    ShortReachDetector,
    VanishingDetector,
)
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.plain import warn
from lightning_gradwatch.profile import Profile


class ProfileDetectors:
    """All of them, asked one after the other.

    Args:
        users: the user's.

    Attributes:
        exploding: the built-in detector of growth through time.
    """

    def __init__(self, users: Sequence[Detector] = ()) -> None:
        self.exploding = ExplodingDetector()
        self._of_lags: tuple[Detector, ...] = (self.exploding, SaturationDetector(), VanishingDetector())
        others = (ShortReachDetector(), OneSequenceDetector(), ScanMismatchDetector())
        self._others: tuple[Detector, ...] = (*others, *map(GuardedDetector, users))

    def __call__(self, profile: Profile, moment: Moment) -> Iterator[Event]:
        """What they say of a profile. Of a scan that was marked with what it does not compute, the
        lags say nothing.
        """
        of_lags = self._of_lags if profile.mismatch is None else ()
        for detector in (*of_lags, *self._others):
            event = detector(profile, moment)
            if event is not None:
                yield event

    def finish(self, moment: Moment) -> Iterator[Event]:
        """What they have still to say when training is over."""
        for detector in (*self._of_lags, *self._others):
            yield from detector.finish(moment)


class GuardedDetector:
    """A user's detector, whose error is one warning and harms nothing. It goes on being asked."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._warned = False

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """What it says of a profile; nothing where it fails."""
        return next(iter(self._ask(lambda: [self._detector(profile, moment)])), None)

    def finish(self, moment: Moment) -> list[Event]:
        """What it has still to say; nothing where it fails."""
        return self._ask(lambda: self._detector.finish(moment))

    def _ask(self, question: Callable[[], Sequence[Event | None]]) -> list[Event]:
        try:
            return [_checked(event) for event in question() if event is not None]
        except Exception as error:  # the user's own code: its failure must not harm the run
            if not self._warned:
                self._warned = True
                name = type(self._detector).__name__
                warn(
                    f"The detector {name} failed ({type(error).__name__}: {error}); what it would have said is lost, "
                    "and the training goes on.",
                    stacklevel=2,
                )
            return []


def _checked(event: object) -> Event:
    if not isinstance(event, Event):
        raise TypeError(f"a detector returns an Event or None; found {event!r}. Use moment.event(kind, …)")
    json.dumps(event.to_record())  # numbers of NumPy and torch do not go into a record
    return event
