"""The loss of a step: as the training step returned it, and the same on all processes."""

from __future__ import annotations

import math

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


def common_loss(trainer: Trainer, loss: float | None) -> float | None:
    """The mean of all processes' losses, for decisions that all must take alike; None where one of
    them does not know its own. A collective where there are several.

    Args:
        loss: of this process.
    """
    if trainer.world_size == 1:
        return loss
    of_rank = torch.tensor(math.nan if loss is None else loss, device=trainer.strategy.root_device)
    mean = float(trainer.strategy.reduce(of_rank, reduce_op="mean"))
    return None if math.isnan(mean) else mean
