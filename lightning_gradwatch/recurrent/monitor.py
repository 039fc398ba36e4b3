"""The one small reduction of an ordinary step: the norm of the recurrent modules' gradients, read without blocking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PendingNorm:
    """A norm on its way from the device. On the CPU it is there at once."""

    __slots__ = ("_arrived", "_value")

    def __init__(self, norm: Tensor) -> None:
        if norm.device.type == "cuda":
            # A pinned target and an event: reading a device tensor directly would wait for all work queued before it.
            self._value = torch.empty((), dtype=norm.dtype, pin_memory=True)
            self._value.copy_(norm, non_blocking=True)
            self._arrived: torch.cuda.Event | None = torch.cuda.Event()
            self._arrived.record()
        else:
            self._value, self._arrived = norm, None

    def ready(self) -> bool:
        """Whether :meth:`value` can be read without waiting."""
        return self._arrived is None or self._arrived.query()

    def value(self) -> float:
        """The norm; NaN or inf where an entry is so, or where its square overflowed."""
        return float(self._value)


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a tensor that may be sharded (DTensor): an operation on the whole would be a collective."""
    return getattr(tensor, "_local_tensor", tensor)


@torch.no_grad()
def gradient_norm(weights: Sequence[Tensor], scale: Tensor | float = 1.0) -> PendingNorm | None:
    """The L2 norm over the gradients of ``weights``, divided by the loss ``scale``; None if none has one."""
    gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)  # type: ignore[attr-defined]  # what clip_grad_norm_ uses
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return PendingNorm(norm / scale if isinstance(scale, Tensor) else norm)
