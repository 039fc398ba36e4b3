"""Optimizers that undo a gradient scaler's scale in their own step (``fused=True``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer


def unscale(optimizer: Optimizer, gradients: Sequence[Tensor]) -> float | None:
    """Divide the gradients by the scale that the scaler has put on the optimizer for this step,
    and take it off. Returns the scale, or None where nothing is left to undo.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if not isinstance(scale, Tensor):
        return None
    cast("Any", optimizer).grad_scale = None  # the optimizer would undo it once more
    for gradient in gradients:
        gradient.mul_(scale.double().reciprocal().float().to(gradient.device))
    return float(scale)


def found_inf(optimizer: Optimizer) -> bool:
    """Whether the scaler found an inf or NaN, so that the optimizer makes no step. A host sync."""
    flag = getattr(optimizer, "found_inf", None)
    return isinstance(flag, Tensor) and bool(torch.any(flag > 0))
