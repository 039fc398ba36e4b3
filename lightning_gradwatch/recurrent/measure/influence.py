"""Influence: which inputs the loss at a timestep listens to, ∂L_τ/∂x_t by lag."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_gradwatch.profile import INPUT, Floats, Profile
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.layout import DIRECTIONS, FORWARD, Layout
from lightning_gradwatch.recurrent.measure.anchors import Anchors
from lightning_gradwatch.recurrent.measure.sweep import Sweep
from lightning_gradwatch.recurrent.measure.tables import by_time, lag_curves


def influence_profiles(swept: Sweep, likes: list[Profile]) -> list[Profile]:
    """The profiles of a module's input, beside those of its lowest layer's h.

    Forward: lags count back to earlier inputs. Of a bidirectional module, reverse: on to later
    ones. The input has one gradient, the sum of what all directions send it.

    Args:
        likes: the profiles of the lowest layer's h, by direction; what is said of the call is
            theirs.
    """
    norms = swept.inputs
    if norms is None:
        return []
    total = by_time(norms[:, 0], swept.layout, FORWARD)
    return [
        replace(
            like,
            state=INPUT,
            primary=False,
            total=total,
            direct=None,
            curves=influence_curves(norms[:, 1:], swept.layout, swept.anchors, DIRECTIONS.index(like.direction)),
            gate_gradient=None,
            saturation=None,
        )
        for like in likes
    ]


def influence_curves(
    norms: axes.Float[Tensor, "time anchor sequence"], layout: Layout, anchors: Anchors, direction: int
) -> Floats:
    """``(curve, lag)``: ‖∂L_τ/∂x_{τ∓k}‖ over that at lag 0; anchors whose own input gets nothing
    are left out.

    Args:
        norms: as the caller counts time.
    """
    in_order = layout.read_padded(norms.transpose(1, 2), direction, 0, layout.timesteps).transpose(1, 2)
    return lag_curves(in_order, layout, anchors, direction)
