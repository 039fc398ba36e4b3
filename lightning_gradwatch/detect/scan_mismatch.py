"""A scan whose states are not those of its own recurrence."""

from __future__ import annotations

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.profile import Profile


class ScanMismatchDetector:
    """Reports a scan that was marked with its inputs, and whose states are not what its decay and
    these make; once a place.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, int, str]] = set()

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile."""
        mismatch = profile.mismatch
        if mismatch is None or profile.place in self._told:
            return None
        self._told.add(profile.place)
        return moment.event(
            EventKind.SCAN_MISMATCH,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state=profile.state,
            timestep=mismatch.timestep,
            sequence=mismatch.sequence,
            value=mismatch.error,
            threshold=mismatch.tolerance,
        )

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over: there is nothing left to be said."""
        return []
