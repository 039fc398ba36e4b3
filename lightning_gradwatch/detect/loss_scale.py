"""A loss that is another multiple of itself: summed over more, weighted anew, one of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LEAST = 10.0
"""Times. A smaller factor needs no explanation."""

NARROW, WIDE = 0.75, 1.25
"""In the factor's logarithm, how much the gradients may have grown. What grows as the root of the
loss, as that of a squared error does at an outlier, is far outside."""

ALIKE = 5.0
"""Times. So far apart may the parameters' gradients have grown, since no batch is like another."""

MOST_PARAMETERS = 0.75
"""Share of the parameters of which that must be so."""


@dataclass(frozen=True, slots=True)
class Multiplied:
    """A loss that is ``factor`` times as large as in the steps before; ``another``: one that goes
    through parameters of its own.
    """

    factor: float
    another: bool


def multiplied(
    loss: float | None, ordinary: float | None, grown: Sequence[float], *, others: bool = False
) -> Multiplied | None:
    """Whether the loss itself was multiplied since the steps before, or is another one.

    A loss that is multiplied multiplies every parameter's gradient by the same factor. An outlier,
    a step too far or growth through time does not.

    Args:
        loss, ordinary: of this step, and of the few before it.
        grown: by how much the norm of each parameter's gradient has grown, > 0.
        others: whether parameters have a gradient now that had none, as those of another head.
    """
    if not loss or not ordinary or not grown or not LEAST <= loss / ordinary < math.inf:
        return None
    factor, logs = math.log(loss / ordinary), [math.log(one) for one in grown]
    middle = median(logs)
    alike = sum(abs(one - middle) <= math.log(ALIKE) for one in logs) >= MOST_PARAMETERS * len(logs)
    fits = middle <= WIDE * factor and (others or (alike and middle >= NARROW * factor))
    return Multiplied(loss / ordinary, others) if fits else None
