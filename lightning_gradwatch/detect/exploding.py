"""A gradient that grows on its way back through time."""

from __future__ import annotations

import numpy as np

from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.profile import Profile

EXPLODING_FACTOR = 100.0
"""A lagged gradient more than this many times that at lag 0 is exploding."""


class ExplodingDetector:
    """Reports a layer's gradient when it grows more than ``factor``-fold through time; once an episode.

    An episode ends when a sampled step finds the growth under a tenth of ``factor``.

    Args:
        factor: dimensionless, > 1.

    Raises:
        ValueError: ``factor`` is not over 1.
    """

    def __init__(self, factor: float = EXPLODING_FACTOR) -> None:
        if not factor > 1:
            raise ValueError(f"`factor` must be > 1; found {factor}. The default is {EXPLODING_FACTOR}.")
        self.factor = factor
        self._episodes: set[tuple[str, int, str]] = set()

    def __call__(self, profile: Profile, moment: Moment) -> Event | None:
        """The event of a profile of h, if it begins an episode."""
        lagged = profile.lagged()
        if profile.state != "h" or not len(lagged) or not np.isfinite(lagged).all():
            return None  # what is not finite is another detector's to locate
        key = (profile.module, profile.layer, profile.direction)
        lag = int(np.argmax(lagged))
        peak = float(lagged[lag])
        if peak < self.factor / 10:
            self._episodes.discard(key)
        if not peak > self.factor or key in self._episodes:
            return None
        self._episodes.add(key)
        return moment.event(
            EventKind.EXPLODING_HIDDEN_GRADIENT,
            module=profile.module,
            layer=profile.layer,
            direction=profile.direction,
            state="h",
            value=peak,
            threshold=self.factor,
            detail=f"It is largest {lag} timesteps back from the loss, in sequences of {profile.timesteps}.",
        )
