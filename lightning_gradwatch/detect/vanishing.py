"""A gradient that dies on its way back through time, long before the sequence begins."""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np

from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.profile import Profile, gradient_horizon, growth_rate

SAMPLES = 3
"""Vanishing is judged from this many sampled steps in a row, never from one."""

VANISHING_SHARE = 0.5
"""A horizon shorter than this share of the sequence is vanishing."""


def is_vanishing(horizon: float, timesteps: int) -> bool:
    """Whether a horizon, which the sequence did not cut off, is short beside the sequence; both in timesteps."""
    return horizon < VANISHING_SHARE * timesteps


class VanishingDetector:
    """Reports a layer whose gradient horizon stays short over several samples; once an episode.

    A horizon that the sequence cut off (censored) never counts, and ends an episode. Where the gradient reached further earlier in
    the run, the event is a note and no warning: what has been learned needs little gradient.

    Args:
        samples: how many sampled steps in a row.

    Raises:
        ValueError: ``samples`` is under 1.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        if samples < 1:
            raise ValueError(f"`samples` must be ≥ 1; found {samples}. The default is {SAMPLES}.")
        self.samples = samples
        self._recent: dict[tuple[str, int, str, int], deque[int]] = {}
        self._episodes: set[tuple[str, int, str]] = set()
        self._furthest: dict[tuple[str, int, str], int] = {}

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """The event of a profile of h, if it begins an episode."""
        lagged = profile.lagged()
        if profile.state != "h" or len(lagged) < 2 or not np.isfinite(lagged).all():
            return None
        key = (profile.module, profile.layer, profile.direction)
        recent = self._recent.setdefault((*key, profile.call), deque(maxlen=self.samples))
        horizon, rate = gradient_horizon(lagged), growth_rate(lagged)
        if horizon.censored or horizon.lag is None or not is_vanishing(horizon.lag, profile.timesteps):
            recent.clear()
            self._episodes.discard(key)
            self._furthest[key] = max(self._furthest.get(key, 0), horizon.lag or 0)
            return None
        recent.append(horizon.lag)
        if len(recent) < self.samples or key in self._episodes or not (rate is None or rate < 0):
            return None
        self._episodes.add(key)
        further = self._furthest.get(key)
        earlier = "" if further is None else f" Earlier it reached {further}; if the loss is low by now, it was enough."
        speed = "" if rate is None else f", growth rate {rate:+.3g} nats per timestep"
        return moment.event(
            EventKind.VANISHING_HIDDEN_GRADIENT,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state="h",
            value=float(median(recent)),
            threshold=VANISHING_SHARE * profile.timesteps,
            severity=None if further is None else Severity.INFO,
            detail=f"The sequences have {profile.timesteps}; so it was in {len(recent)} samples in a row{speed}.{earlier}",
        )
