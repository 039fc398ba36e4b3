"""What a gradient scaler of mixed precision multiplies the loss by."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def scale_of(scaler: Any) -> Tensor | float:
    """The scale as it is now, on its device: read later it may have been
    updated, read now it would be a host sync.
    """
    scale = scaler._scale
    # It is made when the first loss is scaled.
    return scale.clone() if isinstance(scale, Tensor) else float(scaler.get_scale())
