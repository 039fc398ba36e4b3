"""The parameters of an optimizer, as far as clipping is concerned."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All that it trains."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def hooked(optimizer: Optimizer) -> int:
    """Of how many of them something changes the gradient, or may, within the backward pass."""
    return sum(map(_has_hook, parameters_of(optimizer)))


def _has_hook(weight: Tensor) -> bool:
    return bool(getattr(weight, "_backward_hooks", None) or getattr(weight, "_post_accumulate_grad_hooks", None))
