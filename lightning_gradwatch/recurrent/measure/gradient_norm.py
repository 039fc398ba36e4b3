"""The one small reduction of an ordinary step: the norm of each parameter's
gradient, read without blocking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


class PendingValues:
    """A vector on its way from the device. On the CPU it is there at once."""

    __slots__ = ("_arrived", "_values")

    def __init__(self, values: Tensor) -> None:
        if values.device.type == "cuda":
            # A pinned target and an event: reading a device tensor directly would wait
            # for all work queued before it.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived: torch.cuda.Event | None = torch.cuda.Event()
            self._arrived.record()
        else:
            self._values, self._arrived = values, None

    def ready(self) -> bool:
        """Whether :meth:`values` can be read without waiting."""
        return self._arrived is None or self._arrived.query()

    def values(self) -> list[float]:
        """The numbers; NaN or inf where an entry is so, or where its square overflowed."""
        if self._arrived is not None:
            self._arrived.synchronize()  # what is pinned can be read before it has arrived
        return self._values.tolist()


@dataclass(frozen=True, slots=True)
class Norms:
    """The gradients of one backward pass, read.

    Args:
        by_parameter: the norm of each parameter that has a gradient, those
            of the recurrent modules first.
        recurrent: how many those are.
        loss: beside them; None where it was not a scalar on their device.
    """

    by_parameter: list[float]
    recurrent: int
    loss: float | None

    @property
    def whole(self) -> float:
        """Of all parameters."""
        return total(self.by_parameter)

    @property
    def of_recurrent(self) -> float:
        """Of the recurrent modules' parameters; 0 where none has a gradient."""
        return total(self.by_parameter[: self.recurrent])


class PendingNorms:
    """The norms of one backward pass, and its loss, on their way from the device.

    Attributes:
        parameters: those with a gradient, in the order of :attr:`Norms.by_parameter`.
    """

    __slots__ = ("_accumulation", "_has_loss", "_pending", "_recurrent", "_scale", "parameters")

    def __init__(
        self, parameters: list[Tensor], recurrent: int, values: Tensor, has_loss: bool, scale: float, accumulation: int
    ) -> None:
        self.parameters = parameters
        self._pending = PendingValues(values)
        self._recurrent, self._has_loss, self._scale, self._accumulation = recurrent, has_loss, scale, accumulation

    def ready(self) -> bool:
        """Whether :meth:`read` need not wait."""
        return self._pending.ready()

    def read(self) -> Norms:
        """What arrived."""
        values = [value / self._scale for value in self._pending.values()]
        loss = values.pop() * self._accumulation if self._has_loss else None
        return Norms(values, self._recurrent, loss)


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a tensor that may be sharded (DTensor): an operation on
    the whole would be a collective.
    """
    return getattr(tensor, "_local_tensor", tensor)


def total(norms: Sequence[float]) -> float:
    """The norm over parts: NaN if one is, else inf if one is."""
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)  # hypot would say inf beside an inf


@torch.no_grad()
def gradient_norms(
    recurrent: Sequence[Tensor],
    others: Sequence[Tensor] = (),
    *,
    loss: Tensor | None = None,
    scale: Tensor | float = 1.0,
    accumulation: int = 1,
) -> PendingNorms | None:
    """The L2 norm of each gradient, divided by the loss ``scale``; None if there is none.

    Args:
        recurrent, others: parameters, in the order of their norms.
        loss: to be read beside them, if it is a scalar on their device and whole (no DTensor).
        accumulation: the loss was divided by so many.
    """
    of_recurrent = [weight for weight in recurrent if weight.grad is not None]
    parameters = of_recurrent + [weight for weight in others if weight.grad is not None]
    if not parameters:
        return None
    norms = _norms([numbers(weight.grad) for weight in parameters if weight.grad is not None])
    rides = loss is not None and loss.numel() == 1 and loss.device == norms[0].device and local(loss) is loss
    if rides and loss is not None:
        norms.append(loss.detach().squeeze() if loss.dim() else loss.detach())
    values = torch.stack(norms)
    if isinstance(scale, Tensor):  # read now it would be a host sync
        values, scale = values / scale.to(values.device), 1.0
    return PendingNorms(parameters, len(of_recurrent), values, rides, float(scale), accumulation)


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """One scalar each, all on the first one's device."""
    device = gradients[0].device
    if all(gradient.device == device for gradient in gradients):
        return list(torch._foreach_norm(gradients))  # type: ignore[attr-defined]  # what clip_grad_norm_ uses
    return [torch.linalg.vector_norm(gradient).to(device, non_blocking=True) for gradient in gradients]


def numbers(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, which may be sharded, or sparse: there
    rows that came twice stand twice.
    """
    local_part = local(gradient)
    return local_part._values() if local_part.is_sparse else local_part


@torch.no_grad()
def usual_norms(model: nn.Module) -> dict[int, float]:
    """The norm of each weight matrix, by the identity of its parameter, and no less than PyTorch's
    own start within ±1/√inputs would give it: a matrix that begins near 0 has to grow.
    """
    rows = {id(p): len(numbers(p)) for p in model.parameters() if not isinstance(p, UninitializedParameter) and p.dim()}
    return {name: max(norm, math.sqrt(rows[name] / 3)) for name, norm in matrix_norms(model).items() if norm > 0}


def matrix_norms(model: nn.Module) -> dict[int, float]:
    """The norm of each weight matrix, by the identity of its parameter; one host sync.
    Those not made yet are left out.
    """
    weights = [p for p in model.parameters() if not isinstance(p, UninitializedParameter) and p.dim() > 1]
    weights = [p for p in weights if p.is_floating_point() and numbers(p).numel()]
    norms = torch.stack(_norms([numbers(p) for p in weights])).tolist() if weights else []
    return dict(zip(map(id, weights), norms, strict=True))
