"""A step whose gradients are not finite, or so large that Pascanu's own code takes them for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_gradwatch.clip.step.groups import PolicyGroup

RECURRENT = "weight_hh"
"""What torch calls the recurrent weights of its modules and cells."""

SHRINK = 0.02
"""Of the recurrent weights, as Pascanu has it."""

HUGE = 1e10
"""The norm from which on Pascanu shrinks them."""


class NonFiniteGradientError(FloatingPointError):
    """Raised at a step whose gradients are not finite, where that was asked for."""


def shrink_recurrent_(groups: Sequence[PolicyGroup]) -> bool:
    """Recurrent weights get 0.02 W_hh for a gradient, all others zero (Pascanu's
    code); false where there are none.
    """
    if not any(RECURRENT in name for group in groups for name in group.names):
        return False
    for group in groups:
        for gradient, parameter, name in zip(group.gradients, group.parameters, group.names, strict=True):
            if RECURRENT in name:
                torch.mul(parameter.detach(), SHRINK, out=gradient)
            else:
                gradient.zero_()
    return True
