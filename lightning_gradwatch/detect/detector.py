"""What every detector of profiles looks like, the built-in ones and a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.profile import Profile


@runtime_checkable
class Detector(Protocol):
    """Takes in the profiles of one fit in the order of training, and says what is wrong with them.

    It holds whatever state it needs from one sample to the next, by ``profile.place`` (module,
    layer, direction) where it needs one for each layer. A profile is read, never changed.
    """

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in one profile of a sampled step.

        Args:
            profile: of one layer and direction of one call of a recurrent module; of the cell state
                of an LSTM too, which ``profile.primary`` tells apart.
            moment: when it was, with the loss of the step.
                ``moment.event(kind, …)`` makes an event of it.

        Returns:
            What is to be told, if anything is.
        """
        ...

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over. Returns what is still to be told."""
        ...


def checked_detectors(detectors: Sequence[object] | None) -> list[Detector]:
    """A list of them; empty for None.

    Raises:
        ValueError: one is no detector.
    """
    checked: list[Detector] = []
    for detector in detectors or ():
        if isinstance(detector, type) or not isinstance(detector, Detector):
            raise ValueError(
                "`detectors` must be objects with `__call__(profile, moment)` and `finish(moment)`; "
                f"found {detector!r}. See lightning_gradwatch.Detector."
            )
        checked.append(detector)
    return checked
