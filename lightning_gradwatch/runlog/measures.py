"""What one profile of a run log, or a few of them, say: the measures on
which evidence and verdicts rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import median
from typing import Any

from lightning_gradwatch.thresholds import (
    EXPLODING_FACTOR,
    LAST_SAMPLES,
    LAST_SHARE,
    SEVERAL,
    STARVING_SHARE,
    VANISHING_SHARE,
)

Record = Mapping[str, Any]


def reach(record: Record | None) -> float:
    """How many timesteps a gradient that is not short reaches back, a little more if it was cut
    off; 0 of one that is short, or was not followed further, or explodes.
    """
    if record is None or record.get("horizon") is None or not is_finite(record) or growth(record) > EXPLODING_FACTOR:
        return 0.0
    horizon, censored = record["horizon"], bool(record["horizon_censored"])
    return horizon + 0.5 * censored if horizon + censored >= VANISHING_SHARE * due_timesteps(record) else 0.0


def real_timesteps(record: Record) -> int:
    """Of the longest sequence, without padding that the loss does not ask the gradient to cross."""
    real = record.get("real_timesteps")
    return record["timesteps"] if real is None else real


def due_timesteps(record: Record) -> int:
    """Those of them at or before the last one that the loss reaches."""
    reached, of = due(record)
    return max(real_timesteps(record) - (of - reached), 1) if reached else real_timesteps(record)


def is_finite(record: Record) -> bool:
    """Whether every gradient norm of a profile is. NaN stands where no sequence reached."""
    return not any(map(math.isinf, record.get("total_max") or record["total"]))


def growth(record: Record) -> float:
    """The largest lagged gradient of a profile; 0 where it has none."""
    return max(record.get("lagged") or [0.0])


def starves(record: Record) -> bool:
    """Whether the end of the sequence that is furthest from the loss gets under 1 %
    of the largest total gradient.
    """
    if record.get("starved") is not None:
        return record["starved"] > 0
    total = [norm for norm in record["total"] if not math.isnan(norm)]
    if not total:
        return False
    return total[-1 if record.get("direction") == "reverse" else 0] < STARVING_SHARE * max(total)


def due(record: Record) -> tuple[int, int]:
    """``(reached, timesteps)`` of a profile: up to which timestep, in the direction's own order,
    the loss sends a gradient, of how many.
    """
    if record.get("reached") is not None and record.get("reachable") is not None:
        return record["reached"], record["reachable"]
    total = record["total"][::-1] if record.get("direction") == "reverse" else record["total"]
    last = max((place for place, norm in enumerate(total) if norm > 0), default=-1)
    return (last + 1) * record["timesteps"] // max(len(total), 1), record["timesteps"]


def middle(counts: Sequence[int]) -> int:
    """The median, a whole number."""
    return int(median(counts))


def recent_steps(steps: Sequence[int]) -> set[int]:
    """Those of the last share of the training: told by the steps themselves, which do not depend
    on how many samples were kept.
    """
    late = [step for step in steps if step >= (1 - LAST_SHARE) * steps[-1]]
    return set(steps[-min(LAST_SAMPLES, max(SEVERAL, len(late))) :])


def median_horizon(records: Sequence[Record]) -> tuple[int | None, bool]:
    """The lower median, where a horizon that the sequence cut off is known to be longer than what
    was seen of it, and no more (Kaplan and Meier 1958): a short sequence says nothing of what
    becomes of the gradient in a long one. The longest one, cut off, where less than half had ended.
    """
    known = [record for record in records if record.get("horizon") is not None]
    full = [record["horizon"] for record in known if not record["horizon_censored"]]
    surviving = Fraction(1)
    for lag in sorted(set(full)):
        surviving *= 1 - Fraction(full.count(lag), sum(record["horizon"] >= lag for record in known))
        if surviving <= Fraction(1, 2):
            return lag, False
    return (max(record["horizon"] for record in known), True) if known else (None, False)
