"""Both ends of a layer in one direction: the states there, and what the loss sends to the last
ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.measure.anchors import Anchors


@dataclass(frozen=True, slots=True)
class Boundary:
    """The chosen sequences' states at both ends, ``(sequence, width)``; None where absent. ``h_n``
    and ``c_n`` are those recorded.
    """

    h0: axes.Float[Tensor, "sequence state"] | None
    c0: axes.Float[Tensor, "sequence hidden"] | None
    h_n_gradient: axes.Float[Tensor, "sequence state"] | None
    c_n_gradient: axes.Float[Tensor, "sequence hidden"] | None
    h_n: axes.Float[Tensor, "sequence state"] | None = None
    c_n: axes.Float[Tensor, "sequence hidden"] | None = None


def share_of_ends(anchors: Anchors, ends: axes.Int[Tensor, " sequence"]) -> axes.Float[Tensor, "stream sequence"]:
    """Which streams a final state belongs to: all of the loss, and the anchors that stand at its
    own timestep.
    """
    injected = torch.where(anchors.timestep == ends, anchors.scale, 0.0)
    return torch.cat([torch.full((1, len(ends)), anchors.lift, dtype=torch.float64), injected])


def shared(
    gradient: axes.Float[Tensor, "sequence width"] | None, share: axes.Float[Tensor, "stream sequence 1"]
) -> axes.Float[Tensor, "stream sequence width"] | None:
    """``(stream, sequence, width)``: what each stream gets of a final state's gradient."""
    if gradient is None:
        return None
    # A share of 0 is no gradient at all, also where the gradient itself is not finite.
    return torch.where(share != 0, gradient[None] * share, 0.0)
