"""The horizon that the gates' biases alone would give."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.starts.known import keeping_bias
from lightning_gradwatch.starts.layer_weights import LayerWeights
from lightning_gradwatch.thresholds import HORIZON_RATIO

LONGEST = 1 << 20
"""Timesteps beyond which nothing is predicted."""


def predicted_horizon(layer: LayerWeights) -> int | None:
    """The first lag k at which √(mean_j σ(b_j)^2k) is under 1 %, b the biases of the gate that
    keeps; None where there is no such gate, or it is further off than anybody trains.

    It is what would be left of the state if nothing but this gate acted: an input or a recurrent
    weight that moves the gate, and what flows back through the recurrent weights, are left out.
    """
    bias = keeping_bias(layer)
    if bias is None:
        return None
    keep = bias.double().sigmoid()

    def left(lag: int) -> float:
        return float(keep.pow(2 * lag).mean().sqrt())

    return None if left(LONGEST) >= HORIZON_RATIO else _first(left)


def _first(left: Callable[[int], float]) -> int:
    low, high = 0, 1
    while left(high) >= HORIZON_RATIO:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) >= HORIZON_RATIO else (low, middle)
    return high
