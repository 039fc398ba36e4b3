"""A loss that is the same on all processes, for decisions that all must take alike."""

from __future__ import annotations

import math

import torch

from lightning_gradwatch.trainer.compat import Trainer


def common_loss(trainer: Trainer, loss: float | None) -> float | None:
    """The mean of all processes' losses; None where one of them does not know its own. A collective where there are several.

    Args:
        loss: of this process.
    """
    if trainer.world_size == 1:
        return loss
    own = torch.tensor(math.nan if loss is None else loss, device=trainer.strategy.root_device)
    mean = float(trainer.strategy.reduce(own, reduce_op="mean"))
    return None if math.isnan(mean) else mean
