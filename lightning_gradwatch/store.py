"""What the processes of a training can tell one another without waiting for each other."""

from __future__ import annotations

from typing import Any, cast

import torch


def is_distributed() -> bool:
    """Whether this process is one of several that were made known to each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def common_store() -> Any:
    """The keys and values that all processes see. Not a collective: one would hang where only some
    processes take part.
    """
    return cast("Any", torch.distributed.distributed_c10d)._get_default_store()
