"""The loss of a step: as the training step returned it, and the same on all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.trainer.compat import LightningModule, Trainer, accumulation
from lightning_gradwatch.trainer.mixed_precision import loss_scale


@torch.no_grad()
def as_returned(loss: Tensor, trainer: Trainer, module: LightningModule) -> Tensor:
    """The loss that goes into the backward pass, without the scale and
    the division for accumulation.

    Args:
        loss: a scalar.
    """
    divisor = accumulation(trainer) if module.automatic_optimization else 1
    factor = divisor / loss_scale(trainer)
    return loss.detach() if isinstance(factor, float) and factor == 1.0 else loss.detach() * factor


def common_loss(trainer: Trainer, losses: Sequence[Tensor]) -> Tensor | None:
    """The mean of all processes' losses, for decisions that all must take alike: a scalar on the
    device, NaN where one of them does not know its own. A collective; None where there is one
    process alone.

    Args:
        losses: of this process, scalars.
    """
    if trainer.world_size == 1:
        return None
    device = trainer.strategy.root_device
    own = [loss.to(device, torch.float32) for loss in losses] or [torch.tensor(math.nan, device=device)]
    mean = trainer.strategy.reduce(torch.stack(own).mean(), reduce_op="mean")
    return mean if isinstance(mean, Tensor) else None
