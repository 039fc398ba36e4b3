"""A weight that an optimizer step spoilt, found by looking at it: nothing that is
computed with it need show it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lightning_gradwatch.detect.nonfinite import bad_weight
from lightning_gradwatch.events import Event, EventKind, Moment

SATURATED = "The weight {weight} is {value}, though every state and gradient is finite: what it enters is saturated, and no longer learns."
AFTER_THE_LAST_STEP = "After the last step the weight {weight} is {value}."


class WeightWatch:
    """Tells each weight that is not finite once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, weights: Iterable[tuple[str, Tensor]], message: str, moment: Moment) -> Event | None:
        """The event of the first one that was not told yet.

        Args:
            weights: by qualified name.
            message: with the fields ``weight`` and ``value``.
        """
        bad = bad_weight((name, weight) for name, weight in weights if name not in self._told)
        if bad is None:
            return None
        name, entry, value, _ = bad
        self._told.add(name)
        return moment.event(
            EventKind.NONFINITE_STATE,
            parameter=name,
            value=value,
            message=message.format(weight=f"{name}[{entry}]", value=value),
            remedy="An optimizer step made it so: go back to a checkpoint from before it, and look at the learning rate and at the "
            "optimizer's state.",
        )
