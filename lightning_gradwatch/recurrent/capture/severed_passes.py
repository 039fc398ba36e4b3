"""States that are detached after every timestep, each of which has a backward pass of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.capture.severed import How, Use, comes_from, uses_of
from lightning_gradwatch.recurrent.loop import Loop
from lightning_gradwatch.recurrent.scan import Scan

OFTEN = 2
"""So many passes that begin with the state of the pass before are no chance."""

PASSES = How(
    "Each backward pass takes one timestep of it, and begins with the state that the pass before ended with, detached.",
    remedy="Let a backward pass go over several timesteps: add up their losses, send back the sum, and detach the state only after "
    "that. If single timesteps are meant, there is nothing to do.",
)


class BetweenPasses:
    """Modules that take one timestep in a backward pass, and begin the next pass with the state
    that they ended with, detached: no pass ever goes back over a second timestep.

    References to one state a module, without its graph, from one pass to the next.
    """

    def __init__(self) -> None:
        self._ended: dict[str, Tensor] = {}
        self._seen: Counter[str] = Counter()

    @torch.no_grad()
    def severed(self, calls: Sequence[RecurrentCall | Loop | Scan]) -> dict[str, How]:
        """Module → how its state is severed, once that was seen :data:`OFTEN`. It compares values:
        for sampled steps.
        """
        for name, use in _alone(calls).items():
            before = self._ended.get(name)
            if before is not None and use.given and not use.given[0].requires_grad:
                self._seen[name] += comes_from(use.given[0], before)
        return {name: PASSES for name, count in self._seen.items() if count >= OFTEN}

    def keep(self, calls: Sequence[RecurrentCall | Loop | Scan]) -> None:
        """What the calls of a pass ended with, for the next one; none lets go of all."""
        self._ended = {name: use.made[0].detach() for name, use in _alone(calls).items()}


def _alone(calls: Sequence[RecurrentCall | Loop | Scan]) -> dict[str, Use]:
    """Of each module that takes one timestep in one call, that call."""
    counts = Counter(call.module for call in calls)
    single = [call for call in calls if counts[call.module] == 1 and not isinstance(call, Scan)]
    uses = [(call.module, *uses_of(call)) for call in single if not (isinstance(call, Loop) and call.kind == "tap")]
    return {name: use for name, use in uses if use.timesteps == 1 and use.made}
