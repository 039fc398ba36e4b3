"""The processes of a training that is spread by hand over several."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradwatch.store import common_store, is_distributed

_WAIT = timedelta(seconds=60)
"""How long a rank waits to be told the folder; rank 0 may have no watch of its own."""


def rank() -> int:
    """Of this process; 0 where there is but one."""
    return torch.distributed.get_rank() if is_distributed() else 0


def is_alone() -> bool:
    """Whether there is but one process."""
    return not is_distributed() or torch.distributed.get_world_size() == 1


def tell(key: str, text: str) -> None:
    """Rank 0 tells the others; it does not wait for them."""
    common_store().set(f"lightning_gradwatch/{key}", text)


def hear(key: str) -> str | None:
    """What rank 0 tells; None if it says nothing."""
    try:
        common_store().wait([f"lightning_gradwatch/{key}"], _WAIT)
    except RuntimeError:
        return None
    return common_store().get(f"lightning_gradwatch/{key}").decode()


def gradients_are_averaged(model: nn.Module) -> bool:
    """Whether every rank sees the same gradients of the parameters."""
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())
