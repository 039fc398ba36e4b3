"""A growth rate in words."""

from __future__ import annotations

import math


def growth_in_words(rate: float) -> str:
    """What a growth rate makes of the gradient with each timestep back."""
    if abs(rate) < KEEPS:
        return "it keeps its size"
    if rate < 0:
        left = 100 * math.exp(rate)
        return f"it fades, to {left:.0f} % with each" if left >= 1 else "it fades, to under 1 % with each"
    if rate < math.log(2):
        return f"it grows, by {100 * math.expm1(rate):.2g} % with each"
    return f"it grows, {math.exp(rate):.3g}-fold with each" if rate < BEYOND else "it grows, over 1e300-fold with each"


KEEPS = 0.005
"""A growth rate under this, in nats per timestep, is no growth that anybody would notice."""
BEYOND = 700.0
"""A growth rate, in nats per timestep, from which on a float may not hold the factor."""
