"""A growth rate in words."""

from __future__ import annotations

import math

from lightning_gradwatch.thresholds import HORIZON_RATIO


def rate_in_words(rate: float, horizon: int | None = None) -> str:
    """A growth rate with its unit and what it makes of the gradient.

    Args:
        rate: nats per timestep, over all lags.
        horizon: where the curve fell under 1 %; None where it did not.
    """
    said = f"growth rate {rate:+.3g} nats per timestep"
    if horizon is None or not math.isfinite(rate):
        return f"{said}: {growth_in_words(rate)}"
    pace = math.log(HORIZON_RATIO) / rate if rate < 0 else math.inf
    if pace > UNLIKE * max(horizon, 1):
        early = "faster" if rate <= -KEEPS else "it falls"
        return f"{said} over all lags: on average {growth_in_words(rate)}, but {early} over the first lags"
    if pace < horizon / UNLIKE:
        return f"{said} over all lags: on average {growth_in_words(rate)}, but slower over the first lags"
    return f"{said}: {growth_in_words(rate)}"


def growth_in_words(rate: float) -> str:
    """What a growth rate makes of the gradient with each timestep back."""
    if abs(rate) < KEEPS:
        return "it keeps its size"
    if rate < 0:
        left = 100 * math.exp(rate)
        return f"it fades, to {left:.0f} % with each" if left >= 1 else "it fades, to under 1 % with each"
    if rate < math.log(2):
        return f"it grows, by {100 * math.expm1(rate):.2g} % with each"
    grown = f"{math.exp(rate):.3g}-fold" if rate < LARGEST else "beyond every finite number"
    return f"it grows, {grown} with each"


def levels_off(rate: float | None, timesteps: int) -> bool:
    """Whether a gradient hardly fades over the sequence as a whole: at most twice as fast as under
    a forget gate whose bias is ln T (1/T nats per timestep). If its horizon is short, it fell at
    the first lags and stays there.

    Args:
        rate: nats per timestep, over all lags; None where it is not known.
        timesteps: of the sequence.
    """
    return rate is not None and rate > -2 / max(timesteps, 1)


KEEPS = 0.005
"""A growth rate under this, in nats per timestep, is no growth that anybody would notice."""

UNLIKE = 3.0
"""A gradient that fades evenly falls under 1 % after ln(0.01) / rate timesteps. If its horizon is
so many times less, or more, it does not fade evenly."""

LARGEST = math.log(1e300)
"""Nats, of a growth that can be written as a number."""
