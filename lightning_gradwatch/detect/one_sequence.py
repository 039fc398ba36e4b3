"""A loss that reaches one sequence of each batch, always the same: time was taken for the batch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.thresholds import SEVERAL


@dataclass(slots=True)
class _Track:
    """Samples of one call in a row, and the last of them; whether it was ever otherwise."""

    samples: int = 0
    last: Profile | None = None
    index: int = -1
    was_otherwise: bool = False


class OneSequenceDetector:
    """Reports a module of which the loss reaches one sequence of several, always at the same place
    in the batch; once a module.

    So it is where a module takes time for the batch, as without ``batch_first=True``: what was
    meant to be the last timestep, ``output[:, -1]``, is the last sequence then. A loss over the
    hardest of a batch has its one sequence at places that change.
    """

    def __init__(self) -> None:
        self._tracks: dict[Hashable, _Track] = {}
        self._told: set[str] = set()

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Samples that follow up an anomaly are left out."""
        if moment.follow_up or not profile.primary or profile.with_gradient is None or not _reached(profile):
            return None
        track = self._tracks.setdefault((*profile.place, profile.call), _Track())
        index = _reached(profile)[0]
        same = (
            track.last is None
            or index == track.index
            or _from_end(profile, index) == _from_end(track.last, track.index)
        )
        if profile.with_gradient != 1 or profile.batch_size < SEVERAL or not same:
            track.samples, track.last, track.was_otherwise = 0, None, True
            return None
        track.samples, track.last, track.index = track.samples + 1, profile, index
        return self._tell(track, moment) if track.samples >= SEVERAL and not track.was_otherwise else None

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over: what all of too few samples showed."""
        told = [self._tell(track, moment) for track in self._tracks.values() if not track.was_otherwise]
        return [event for event in told if event is not None]

    def _tell(self, track: _Track, moment: Moment) -> Event | None:
        profile = track.last
        if profile is None or profile.module in self._told:
            return None
        self._told.add(profile.module)
        return moment.event(
            EventKind.ONE_SEQUENCE_REACHED,
            module=profile.module,
            sequence=None,
            value=1.0,
            threshold=float(profile.batch_size),
            detail=_detail(profile, track),
            remedy=_remedy(profile, track.index),
        )


def _reached(profile: Profile) -> list[int]:
    """The sequences measured that get a gradient, by their index in the batch."""
    rows = zip(profile.sequences, np.nan_to_num(profile.total), strict=True)
    return [sequence for sequence, row in rows if row.any()]


def _from_end(profile: Profile, index: int) -> int:
    return profile.batch_size - index


def _detail(profile: Profile, track: _Track) -> str:
    which = {0: "the first one", profile.batch_size - 1: "the last one"}.get(track.index, f"number {track.index}")
    always = f"It is {which}" + (f" in {track.samples} samples in a row." if track.samples > 1 else ".")
    return f"{always} {_took(profile)}".rstrip()


def _took(profile: Profile) -> str:
    if profile.batch_first is None:
        return ""
    return (
        f"The module has batch_first={profile.batch_first} and took its input for {count_of(profile.timesteps, 'timestep')} of "
        f"{count_of(profile.batch_size, 'sequence')}."
    )


def _remedy(profile: Profile, index: int) -> str:
    """By how the module was told that its axes lie."""
    if profile.batch_first is None:
        return EventKind.ONE_SEQUENCE_REACHED.remedy
    swapped = f"If {profile.batch_size:,} is the number of timesteps, "
    if profile.batch_size == profile.timesteps:
        swapped = f"If the input has {'time' if profile.batch_first else 'the batch'} first, "
    mended = (
        f"{'' if profile.batch_size == profile.timesteps else 'the input has time first: '}transpose it, x.transpose(0, 1), "
        "or leave out batch_first=True."
        if profile.batch_first
        else "batch_first=True was forgotten: make the module with it, or transpose its input, x.transpose(0, 1)."
    )
    meant = "If one sequence alone is meant to be learned from, there is nothing to do."
    return " ".join((f"{swapped}{mended}", *_misread(profile, index), meant))


def _misread(profile: Profile, index: int) -> list[str]:
    """What it is where the axes lie as the module takes them: an output that is read along the
    wrong one.
    """
    at = {0: "0", profile.batch_size - 1: "-1"}.get(index)
    if at is None:
        return []
    sequence, timestep = f"output[{at}]", f"output[:, {at}]"
    if not profile.batch_first:
        sequence, timestep = timestep, sequence
    which = "first" if index == 0 else "last"
    return [f"If not, {sequence} reads the {which} sequence; the {which} timestep is {timestep}."]
