"""Norms as the tables of a profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.profile import Floats
from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.layout import Layout
from lightning_gradwatch.recurrent.measure.anchors import Anchors, lags


def by_time(norms: axes.Float[Tensor, "time sequence"], layout: Layout, direction: int) -> Floats:
    """``(time, sequence)`` in a direction's own order → ``(sequence, time)`` as the
    caller counts, NaN past the end.
    """
    times = layout.times(direction, 0, layout.timesteps)
    valid = layout.valid(0, layout.timesteps)
    placed = torch.full_like(norms, torch.nan)
    step, sequence = torch.nonzero(valid, as_tuple=True)
    placed[times[step, sequence], sequence] = norms[step, sequence]
    return placed.T.contiguous().numpy()


def lag_curves(
    norms: axes.Float[Tensor, "time anchor sequence"], layout: Layout, anchors: Anchors, direction: int
) -> Floats:
    """``(curve, lag)``: each anchor's gradient by lag over that at lag 0; anchors whose own
    gradient is 0 are left out.

    Args:
        norms: in the direction's own order.
    """
    curves: list[Tensor] = []
    for a in range(len(anchors)):
        for j, length in enumerate(layout.lengths.tolist()):
            timestep = int(anchors.timestep[a, j])
            if timestep < 0:
                continue
            curve = norms[: lags(timestep, length, direction), a, j].flip(0)
            if curve[0] != 0:
                curves.append(curve / curve[0])
    return curve_table(curves)


def curve_table(curves: Sequence[Tensor]) -> Floats:
    """Curves of different lengths as rows ``(curve, lag)``, NaN past the end of each; what is not
    finite in one is inf.
    """
    longest = max((len(curve) for curve in curves), default=0)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.nan_to_num(curve.numpy(), nan=np.inf, posinf=np.inf)
    return table
