"""The norms of an ordinary step, and the loss that is read beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_gradwatch.recurrent.measure.gradient_norm import gradient_norms


class InParts(Tensor):
    """Stands for a DTensor: it holds this process's part."""

    @property
    def _local_tensor(self) -> Tensor:
        return self.as_subclass(Tensor)


def parameter() -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    return weight


def test_the_loss_rides_along() -> None:
    """A scalar loss is read with the norms, and undoes what both were divided and multiplied by."""
    pending = gradient_norms([parameter()], loss=torch.tensor(4.0), scale=2.0, accumulation=3)
    assert pending is not None
    assert (pending.read().whole, pending.read().loss) == (1.0, 6.0)


def test_a_loss_in_parts_is_left_out() -> None:
    """Under tensor parallelism a loss may lie in parts on several processes; it is not read beside the norms."""
    pending = gradient_norms([parameter()], loss=torch.tensor(4.0).as_subclass(InParts))
    assert pending is not None
    assert (pending.read().whole, pending.read().loss) == (2.0, None)
