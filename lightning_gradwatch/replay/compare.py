"""Whether two events tell of the same thing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_PLACE = ("kind", "module", "layer", "direction", "state", "timestep", "sequence", "parameter")
_TOLERANCE = 1e-3  # another device or thread count sums in another order


def differences(recorded: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """In words, where ``seen`` differs from ``recorded`` in kind, place or value; empty for the
    same event."""
    changes = [
        f"{name} was {_text(recorded.get(name))}, now {_text(seen.get(name))}"
        for name in _PLACE
        if recorded.get(name) != seen.get(name)
    ]
    if not _close(recorded.get("value"), seen.get("value")):
        changes.append(f"value was {_text(recorded.get('value'))}, now {_text(seen.get('value'))}")
    return changes


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or math.isclose(one, other, rel_tol=_TOLERANCE)


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
