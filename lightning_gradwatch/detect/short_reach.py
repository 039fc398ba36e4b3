"""A loss that reaches a direction at few of its timesteps: all the
others get no gradient at all.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.scan import KIND as SCAN
from lightning_gradwatch.thresholds import FEW_SHARE, SEVERAL, is_few

CHANGED = 10
"""From so many, where it was otherwise earlier in the run: which timesteps the loss reads
may be drawn anew at each step.
"""


@dataclass(slots=True)
class _Track:
    """Samples of one call of one place that were few, in a row; the last of them; and
    whether it was ever otherwise.
    """

    samples: int = 0
    last: Profile | None = None
    was_reached: bool = False


class ShortReachDetector:
    """Reports a layer and direction of which the loss reaches few timesteps; once a place.

    A recurrence hands a gradient on to *earlier* steps of its own order alone: what a direction
    visits after the last state that the loss reads gets exactly none. So it is with a bidirectional
    module's output at the last timestep, where the reverse direction has seen one step. A direction
    that is not read at all, though the other one is, gets none anywhere. Timesteps that vanishing
    alone keeps from a gradient are no part of this, since the loss lies beyond them.
    """

    def __init__(self) -> None:
        self._tracks: dict[Hashable, _Track] = {}
        self._told: set[Hashable] = set()

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """Take in a profile of h. Samples that follow up an anomaly are left
        out, as they lie side by side.
        """
        reached, timesteps = profile.due()
        if moment.follow_up or not profile.primary or not (reached or profile.unread):
            return None
        track = self._tracks.setdefault((*profile.place, profile.call), _Track())
        if reached and not is_few(reached, timesteps):
            track.samples, track.last, track.was_reached = 0, None, True
            return None
        track.samples, track.last = track.samples + 1, profile
        enough = CHANGED if track.was_reached else SEVERAL
        return self._tell(profile, track.samples, moment) if track.samples >= enough else None

    def finish(self, moment: Moment) -> list[Event]:
        """Training is over: what all of too few samples showed."""
        events = [
            self._tell(track.last, track.samples, moment)
            for track in self._tracks.values()
            if track.last is not None and not track.was_reached
        ]
        return [event for event in events if event is not None]

    def _tell(self, profile: Profile, samples: int, moment: Moment) -> Event | None:
        if profile.place in self._told:
            return None
        self._told.add(profile.place)
        reached, timesteps = profile.due()
        return moment.event(
            EventKind.FEW_TIMESTEPS_REACHED,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state=profile.state,
            value=float(reached),
            threshold=max(1.0, FEW_SHARE * (timesteps or profile.timesteps)),
            detail=_detail(profile, reached, timesteps, samples),
            remedy=_remedy(profile, reached),
        )


def _detail(profile: Profile, reached: int, timesteps: int, samples: int) -> str:
    if profile.unread:
        return (
            f"The other direction alone is read{_in_a_row(samples)}: none of the weights of this one learns anything."
        )
    far = timesteps - reached
    rest = f"the other {far:,} of {timesteps:,} get" if far > 1 else f"the other one of {timesteps:,} gets"
    first_steps = "its own first step" if reached == 1 else f"its own first {reached:,} steps"
    parts = [f"It does so at {first_steps}; {rest} no gradient at all{_in_a_row(samples)}."]
    if profile.direction == "reverse":
        parts.append("This direction begins at the sequence's end, and the loss reads it where it has just begun.")
    return " ".join(parts)


def _in_a_row(samples: int) -> str:
    return f" in {samples} samples in a row" if samples > 1 else ""


def _remedy(profile: Profile, reached: int) -> str:
    if profile.unread:
        return (
            "Read both directions: torch.cat([h_n[-2], h_n[-1]], -1) joins the top layer's final states, the forward one first (h_n[-1] "
            "alone is the reverse direction's), and the output has the forward direction in the first half of its last axis. Where one "
            "direction is enough, make the module without bidirectional=True."
        )
    if profile.kind == SCAN and profile.direction == "reverse":
        return (
            "This scan runs from the last timestep to the first, and has seen the whole sequence at timestep 0. Read its states there, or "
            "at all timesteps; where they belong to late timesteps alone, one direction is enough."
        )
    if profile.direction == "reverse":
        return (
            f"The output at the last timestep{_index(profile, -1)} holds the reverse direction's first step, which has seen that timestep "
            "alone. Read each direction where it ends: torch.cat([h_n[-2], h_n[-1]], -1), the top layer's two final states, or the output "
            "at all timesteps."
            if reached == 1
            else "The reverse direction reads the sequence from its end, and the loss reads it at late timesteps alone. Where the whole "
            "sequence matters, read its final state, h_n[-1], which has seen all of it; otherwise one direction is enough."
        )
    if reached == 1:
        final = "h_n[-1] (of a bidirectional module h_n[-2] and h_n[-1])"
        last = final if profile.kind in _FUSED else "the last state"
        return (
            f"The loss reads the first timestep alone{_index(profile, 0)}, where the state has seen nothing but that timestep. Read "
            f"{last} or the output at all timesteps."
        )
    return (
        "What comes after the last timestep with a loss gets no gradient, and none is due if nothing there belongs to the answer: then cut "
        "the sequences there, which saves time. If it does, look at which timesteps the loss reads or leaves out, or read the last state, "
        "which has seen all of them."
    )


_FUSED = ("RNN", "LSTM", "GRU")


def _index(profile: Profile, place: int) -> str:
    """How the output is read there; nothing where there is no telling."""
    if profile.batch_first is None:
        return ""
    return f" (output[:, {place}])" if profile.batch_first else f" (output[{place}])"
